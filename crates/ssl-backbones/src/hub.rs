//! Files of the Hugging Face hub.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// What an address begins with.
const SCHEME: &str = "hf://";

/// A file of a model on the [Hugging Face hub](https://huggingface.co): `hf://OWNER/NAME/PATH`, or
/// `hf://OWNER/NAME@REVISION/PATH` for a branch, a tag or a commit other than `main`.
///
/// ```
/// use ssl_backbones::HubFile;
///
/// let file = HubFile::parse("hf://timm/vit_small_patch16_224@main/model.safetensors")?.unwrap();
/// assert_eq!((file.name.as_str(), file.revision.as_deref()), ("vit_small_patch16_224", Some("main")));
/// assert_eq!(HubFile::parse("model.safetensors")?, None);
/// # Ok::<(), ssl_backbones::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// A user or an organisation.
    pub owner: String,
    /// The model.
    pub name: String,
    /// Branch, tag or commit; `main` without one.
    pub revision: Option<String>,
    /// The file within it.
    pub path: String,
}

impl HubFile {
    /// The file at this address, or `None` if it is the path of a local file.
    ///
    /// # Errors
    /// If it begins as an address of the hub and is none.
    pub fn parse(address: &str) -> Result<Option<Self>> {
        let Some(rest) = address.strip_prefix(SCHEME) else { return Ok(None) };
        let parts: Vec<&str> = rest.splitn(3, '/').collect();
        let file = match parts[..] {
            [owner, model, path] => {
                let (name, revision) = match model.split_once('@') {
                    Some((name, revision)) => (name, Some(revision)),
                    None => (model, None),
                };
                let named = ![owner, name, path].contains(&"") && revision != Some("");
                named.then(|| Self {
                    owner: owner.to_owned(),
                    name: name.to_owned(),
                    revision: revision.map(str::to_owned),
                    path: path.to_owned(),
                })
            }
            _ => None,
        };
        let wrong = || hub_error(address, "expected hf://OWNER/NAME/PATH or hf://OWNER/NAME@REVISION/PATH");
        file.map(Some).ok_or_else(wrong)
    }

    /// Downloads the file into the hub's cache, unless it is there already, and returns its place.
    ///
    /// The cache and the token for models that are not public are those of the hub's own programs: `HF_HOME`, `HF_TOKEN`;
    /// `HF_ENDPOINT` is another server.
    ///
    /// # Errors
    /// If there is no such file or it cannot be had, or this library was built without the feature `hub`.
    pub fn fetch(&self) -> Result<PathBuf> {
        self.fetch_by_feature().map_err(|reason| hub_error(&self.address(), &reason))
    }

    #[cfg(not(feature = "hub"))]
    fn fetch_by_feature(&self) -> std::result::Result<PathBuf, String> {
        Err("this program was built without the feature `hub`".to_owned())
    }

    #[cfg(feature = "hub")]
    fn fetch_by_feature(&self) -> std::result::Result<PathBuf, String> {
        let client = hf_hub::HFClientSync::new().map_err(|e| e.to_string())?;
        self.fetch_with(&client)
    }

    #[cfg(feature = "hub")]
    fn fetch_with(&self, client: &hf_hub::HFClientSync) -> std::result::Result<PathBuf, String> {
        let model = client.model(self.owner.as_str(), self.name.as_str());
        let file =
            model.download_file().filename(self.path.as_str()).maybe_revision(self.revision.as_deref());
        file.send().map_err(|e| e.to_string())
    }

    /// The way back from [`HubFile::parse`].
    fn address(&self) -> String {
        let revision = self.revision.as_ref().map_or(String::new(), |revision| format!("@{revision}"));
        format!("{SCHEME}{}/{}{revision}/{}", self.owner, self.name, self.path)
    }
}

fn hub_error(address: &str, reason: &str) -> Error {
    Error::Hub { address: address.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart_and_wrong_ones_refused() {
        for address in ["hf://a/b/c.safetensors", "hf://a/b@v1.0/folder/c.safetensors"] {
            assert_eq!(HubFile::parse(address).unwrap().unwrap().address(), address);
        }
        let file = HubFile::parse("hf://a/b@v1.0/folder/c.safetensors").unwrap().unwrap();
        assert_eq!((file.revision.as_deref(), file.path.as_str()), (Some("v1.0"), "folder/c.safetensors"));
        assert_eq!(HubFile::parse("/tmp/hf/a.safetensors").unwrap(), None);
        for wrong in ["hf://a/b", "hf://a//c", "hf://a/b@/c", "hf:///b/c", "hf://a/b/"] {
            let error = HubFile::parse(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("expected hf://OWNER/NAME/PATH"), "{error}");
        }
    }

    #[cfg(not(feature = "hub"))]
    #[test]
    fn without_the_feature_the_message_says_so() {
        let file = HubFile::parse("hf://a/b/c").unwrap().unwrap();
        let error = file.fetch().unwrap_err().to_string();
        assert!(error.contains("hf://a/b/c") && error.contains("without the feature `hub`"), "{error}");
    }

    /// A server with one file answers on this machine, and counts its downloads.
    #[cfg(feature = "hub")]
    #[test]
    fn a_file_is_downloaded_once_and_one_that_is_not_there_is_named() {
        use std::io::{BufRead, BufReader, Write};
        use std::net::TcpListener;
        use std::sync::Arc;
        use std::sync::atomic::{AtomicUsize, Ordering};

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let downloads = Arc::new(AtomicUsize::new(0));
        let counter = downloads.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let request: Vec<String> =
                    lines.map_while(std::result::Result::ok).take_while(|line| !line.is_empty()).collect();
                let Some(first) = request.first() else { continue };
                let known = first.contains("/owner/model/resolve/main/file.safetensors");
                let status = if known { "200 OK" } else { "404 Not Found" };
                let head = "ETag: \"0123\"\r\nX-Repo-Commit: 0123456789012345678901234567890123456789\r\n";
                let body = if first.starts_with("GET") && known { "whole" } else { "" };
                counter.fetch_add(usize::from(!body.is_empty()), Ordering::Relaxed);
                let length = if known { 5 } else { 0 };
                let answer = format!(
                    "HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let client = hf_hub::HFClient::builder().endpoint(endpoint).cache_dir(folder.path());
        let client = client.retry_max_attempts(1).build_sync().unwrap();
        let file = HubFile::parse("hf://owner/model/file.safetensors").unwrap().unwrap();
        for _ in 0..2 {
            let path = file.fetch_with(&client).unwrap();
            assert_eq!(std::fs::read_to_string(path).unwrap(), "whole");
        }
        assert_eq!(downloads.load(Ordering::Relaxed), 1);
        let missing = HubFile { path: "none.safetensors".to_owned(), ..file };
        let error = missing.fetch_with(&client).unwrap_err();
        assert!(error.contains("none.safetensors"), "{error}");
    }
}
