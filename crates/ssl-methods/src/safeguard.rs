//! What keeps a method from giving all images the same embedding, and what to try when it does so all the same.

use std::fmt::Display;

/// What stands between a method and collapse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Safeguard {
    /// What it is, such as `the stop of the gradient at the targets`.
    pub what: &'static str,
    /// Settings of this run that take it away.
    pub removed: Vec<Removed>,
    /// What is likely wrong if it stands and the run collapses, or learns nothing.
    pub doubt: &'static str,
    /// What to try then.
    pub remedy: &'static str,
}

/// A setting that takes a safeguard away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The key in a recipe, with its value: `method.lambda = 0`.
    pub setting: String,
    /// The value that the paper gives it.
    pub papers: String,
}

impl Safeguard {
    /// One that stands.
    pub(crate) fn new(what: &'static str, doubt: &'static str, remedy: &'static str) -> Self {
        Self { what, removed: vec![], doubt, remedy }
    }

    /// The same, taken away by the setting `key` of the method if `gone`.
    pub(crate) fn unless(mut self, gone: bool, key: &str, value: impl Display, papers: impl Display) -> Self {
        if gone {
            let setting = format!("method.{key} = {value}");
            self.removed.push(Removed { setting, papers: papers.to_string() });
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use crate::MethodConfig;

    #[test]
    fn the_papers_settings_of_every_method_leave_its_safeguard_standing() {
        for name in MethodConfig::NAMES {
            let safeguard = MethodConfig::named(name).unwrap().safeguard();
            assert_eq!(safeguard.removed, [], "{name}");
            let texts = [safeguard.what, safeguard.doubt, safeguard.remedy];
            assert!(texts.iter().all(|text| text.len() > 10 && !text.ends_with('.')), "{name}: {texts:?}");
        }
    }

    #[test]
    fn a_removed_safeguard_names_the_setting_and_the_papers_value() {
        let Some(MethodConfig::SimSiam(mut settings)) = MethodConfig::named("simsiam") else { panic!() };
        settings.stop_gradient = false;
        let removed = MethodConfig::SimSiam(settings).safeguard().removed;
        assert_eq!(removed.len(), 1);
        assert_eq!(removed[0].setting, "method.stop_gradient = false");
        assert_eq!(removed[0].papers, "true");
    }
}
