//! The page of a run that may still train, on this machine only.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::live::Live;
use super::page;
use super::run::Run;

/// Seconds after which the page asks for itself again.
const REFRESH_SECONDS: u32 = 5;

/// Longest line of a request that is read.
const MAX_LINE: u64 = 8192;

/// How long a browser may keep us waiting.
const PATIENCE: Duration = Duration::from_secs(5);

/// Serves the page of the run in `folder`, with the pictures of `live`, until the program is stopped.
pub(super) fn follow(folder: &Path, port: u16, live: &Live) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .with_context(|| format!("cannot listen on port {port} of this machine"))?;
    println!("report   http://{}/   (until Ctrl-C)", listener.local_addr()?);
    for stream in listener.incoming() {
        // A browser that goes away is no reason to stop.
        let answered = stream.map_err(anyhow::Error::from).and_then(|stream| answer(stream, folder, live));
        if let Err(error) = answered {
            eprintln!("request: {error:#}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(mut stream: TcpStream, folder: &Path, live: &Live) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(std::io::Read::take(&stream, MAX_LINE)).read_line(&mut line)?;
    let mut words = line.split(' ');
    let (status, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/")) => ("200 OK", html(folder, live)),
        (Some("GET"), Some(_)) => ("404 Not Found", Ok("there is only one page\n".to_owned())),
        _ => ("405 Method Not Allowed", Ok("pages can only be read\n".to_owned())),
    };
    let (status, body) = match body {
        Ok(body) => (status, body),
        Err(error) => ("503 Service Unavailable", format!("{error:#}\n")),
    };
    let kind = if status.starts_with("200") { "text/html" } else { "text/plain" };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()?;
    Ok(())
}

fn html(folder: &Path, live: &Live) -> anyhow::Result<String> {
    let run = Run::read(folder)?;
    let (pictures, last) = live.sections();
    let ended = run.result.is_some() && last;
    let mut page = page::of(&run, pictures);
    page.refresh_seconds = (!ended).then_some(REFRESH_SECONDS);
    Ok(page.to_html())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn ask(request: &str, folder: &Path) -> String {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut browser = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        browser.write_all(request.as_bytes()).unwrap();
        answer(listener.accept().unwrap().0, folder, &Live::without_pictures()).unwrap();
        let mut answer = String::new();
        browser.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn only_the_page_is_served_and_a_folder_without_a_run_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let missing = ask("GET / HTTP/1.1\r\n\r\n", folder.path());
        assert!(missing.starts_with("HTTP/1.1 503") && missing.contains("holds no run"), "{missing}");
        assert!(ask("GET /../etc/passwd HTTP/1.1\r\n\r\n", folder.path()).starts_with("HTTP/1.1 404"));
        assert!(ask("POST / HTTP/1.1\r\n\r\n", folder.path()).starts_with("HTTP/1.1 405"));
        let recipe = ssl_vision::train::Recipe::load("simclr-fashion-mnist", &[]).unwrap();
        std::fs::write(folder.path().join("recipe.toml"), recipe.to_toml().unwrap()).unwrap();
        let page = ask("GET / HTTP/1.1\r\n\r\n", folder.path());
        assert!(page.starts_with("HTTP/1.1 200") && page.contains("No sign of a collapse so far"), "{page}");
    }
}
