//! The texts that images are shown with: captions of their own, or the names of their classes in sentences.

use std::path::Path;

use rand_core::RngCore;
use serde::{Deserialize, Serialize};
use ssl_data::{CaptionFile, Dataset, Sample};
use ssl_nn::Rng;
use ssl_text::ClipTokenizer;

use crate::error::{Error, Result};
use crate::images::Images;

/// Where the text of an image comes from; in a recipe the table `[text]`, for methods that compare images with texts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// A file with a caption for each training image, `.csv`, `.tsv`, `.jsonl` or, with the feature `parquet`,
    /// `.parquet`, from the folder of the data on; empty for the names of the classes in `templates`.
    pub captions: String,
    /// Its column with the paths of the images, from the folder of the data on.
    pub file_column: String,
    /// Its column with the captions.
    pub caption_column: String,
    /// Sentences with `{}` for the name of a class. Without a file one is drawn for an image in every epoch; zero-shot
    /// classification takes the mean of all.
    pub templates: Vec<String>,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            captions: String::new(),
            file_column: "file_name".to_owned(),
            caption_column: "text".to_owned(),
            templates: vec!["a photo of a {}.".to_owned()],
        }
    }
}

impl TextConfig {
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        for (key, value) in [("file_column", &self.file_column), ("caption_column", &self.caption_column)] {
            if value.is_empty() {
                return Err(format!("text.{key} is empty, expected the name of a column"));
            }
        }
        if self.templates.is_empty() {
            return Err("text.templates is empty, expected sentences such as \"a photo of a {}.\"".to_owned());
        }
        match self.templates.iter().position(|template| !template.contains("{}")) {
            Some(i) => Err(format!(
                "text.templates[{i}] = {:?} has no {{}} for the name of a class",
                self.templates[i]
            )),
            None => Ok(()),
        }
    }

    /// The file of the captions of the data in the folder `data`, if there is one.
    pub(crate) fn caption_file(&self, data: &Path) -> Option<CaptionFile> {
        (!self.captions.is_empty()).then(|| CaptionFile {
            path: data.join(&self.captions),
            file_column: self.file_column.clone(),
            caption_column: self.caption_column.clone(),
        })
    }

    /// Whether every training image has a text.
    pub(crate) fn check(&self, images: &Images) -> Result<()> {
        let labelled = || (0..images.train.len()).all(|i| images.train.label(i).is_some());
        if self.captions.is_empty() && (images.class_names().is_empty() || !labelled()) {
            return Err(Error::Recipe(format!(
                "text.captions is empty and {} has no classes, so there are no texts; name a .csv, .tsv, .jsonl or \
                 .parquet file in it",
                images.description
            )));
        }
        Ok(())
    }

    /// What the templates say of the class `name`, whose underscores are spaces.
    pub(crate) fn sentences(&self, name: &str) -> impl Iterator<Item = String> {
        let name = name.replace('_', " ");
        self.templates.iter().map(move |template| template.replace("{}", &name))
    }
}

/// Token ids of a text.
pub(crate) type Ids = [u32; ClipTokenizer::CONTEXT];

/// The texts of a run.
#[derive(Debug)]
pub(crate) enum Captions {
    /// Every image has its own.
    Own(Box<ClipTokenizer>),
    /// Of every class the sentences.
    Classes(Vec<Vec<Ids>>),
}

impl Captions {
    pub(crate) fn new(config: &TextConfig, class_names: &[String]) -> Result<Self> {
        let tokenizer = ClipTokenizer::new()?;
        if !config.captions.is_empty() {
            return Ok(Self::Own(Box::new(tokenizer)));
        }
        let encode = |sentence: String| Ok(tokenizer.encode(&sentence)?);
        let class = |name: &String| config.sentences(name).map(encode).collect::<Result<Vec<Ids>>>();
        Ok(Self::Classes(class_names.iter().map(class).collect::<Result<_>>()?))
    }

    /// The ids of a text for `sample`, drawn where there are several.
    pub(crate) fn ids(&self, sample: &Sample, rng: &mut Rng) -> Result<Ids> {
        let none =
            |what: &str| Error::Recipe(format!("an image to train on has no {what}, so it has no text"));
        match self {
            Self::Own(tokenizer) => {
                let caption = sample.caption.as_ref().ok_or_else(|| none("caption"))?;
                Ok(tokenizer.encode(caption)?)
            }
            Self::Classes(classes) => {
                let sentences = sample.label.and_then(|label| classes.get(label as usize));
                let sentences = sentences.ok_or_else(|| none("class"))?;
                // The product's upper half is below the number of sentences.
                let drawn = (u128::from(rng.next_u64()) * sentences.len() as u128) >> 64;
                Ok(sentences[drawn as usize])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ssl_augment::Image;
    use ssl_methods::TextTowerConfig;
    use ssl_nn::{Purpose, rng};

    use super::*;

    fn sample(label: Option<u32>, caption: Option<&str>) -> Sample {
        let (image, caption) = (Image::new(1, 1, vec![0; 3]).unwrap(), caption.map(Into::into));
        Sample { image, label, caption, partner: None }
    }

    #[test]
    fn the_text_tower_is_made_for_the_tokens() {
        let TextTowerConfig { vocabulary, context, .. } = TextTowerConfig::default();
        assert_eq!((vocabulary, context), (ClipTokenizer::VOCABULARY, ClipTokenizer::CONTEXT));
    }

    #[test]
    fn names_go_into_all_templates_and_each_is_drawn() {
        let config =
            TextConfig { templates: vec!["a {}.".to_owned(), "{}, {}".to_owned()], ..TextConfig::default() };
        assert_eq!(config.sentences("red_fox").collect::<Vec<_>>(), ["a red fox.", "red fox, red fox"]);
        let captions = Captions::new(&config, &["cat".to_owned(), "red_fox".to_owned()]).unwrap();
        let tokenizer = ClipTokenizer::new().unwrap();
        let expected = ["a red fox.", "red fox, red fox"].map(|text| tokenizer.encode(text).unwrap());
        let draw = |i| captions.ids(&sample(Some(1), None), &mut rng(0, Purpose::Caption, 0, i, 0)).unwrap();
        let counts = [0, 1].map(|k| (0..200).filter(|i| draw(*i) == expected[k]).count());
        // Five standard deviations of a binomial count.
        assert!(counts[0] + counts[1] == 200 && counts[0].abs_diff(100) < 36, "{counts:?}");
    }

    #[test]
    fn a_caption_is_its_own_and_what_is_missing_is_told() {
        let config = TextConfig { captions: "c.csv".to_owned(), ..TextConfig::default() };
        let captions = Captions::new(&config, &[]).unwrap();
        let mut rng = rng(0, Purpose::Caption, 0, 0, 0);
        let ids = captions.ids(&sample(None, Some("a cat")), &mut rng).unwrap();
        assert_eq!(ids[..4], [49406, 320, 2368, 49407]);
        let error = captions.ids(&sample(Some(0), None), &mut rng).unwrap_err().to_string();
        assert!(error.contains("no caption"), "{error}");
        let classes = Captions::new(&TextConfig::default(), &["cat".to_owned()]).unwrap();
        assert!(classes.ids(&sample(Some(1), None), &mut rng).unwrap_err().to_string().contains("no class"));
    }
}
