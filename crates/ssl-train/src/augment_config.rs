//! How a recipe says which views are made of an image.

use serde::{Deserialize, Serialize};
use ssl_augment::{Normalize, ViewConfig, presets};
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::layers::{self, from_table, to_table};

/// How views are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AugmentConfig {
    /// One of [`ssl_augment::presets`].
    pub preset: String,
    /// Side of the views in pixels.
    pub size: usize,
    /// Strength of the colour changes, for presets that have one.
    pub strength: f64,
    /// `u8`: as Pillow, rounding after each operation; `f32`: as torchvision on float tensors.
    pub arithmetic: String,
    /// Mean of each channel in `[0, 1]`, subtracted last.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, divided by last.
    pub std: [f64; 3],
    /// Groups of equal views that replace the preset's, such as the large and the small crops of multi-crop: tables with
    /// keys of [`ViewConfig`], first of all `copies`, `size` and `crop_scale`. What group `i` leaves out is the preset's
    /// in its group `i`, or in its last one. Empty for the preset's groups.
    pub views: Vec<Table>,
    /// Keys of [`ViewConfig`] that replace the preset's in every view, such as `crop_scale`.
    #[serde(flatten)]
    pub overrides: Table,
}

impl AugmentConfig {
    /// The views of a preset, all keys with their defaults.
    pub(crate) fn of_preset(preset: &str) -> Self {
        Self {
            preset: preset.to_owned(),
            size: 224,
            strength: 1.0,
            arithmetic: "u8".to_owned(),
            mean: [0.0; 3],
            std: [1.0; 3],
            views: Vec::new(),
            overrides: Table::new(),
        }
    }

    /// The last step of every view.
    ///
    /// # Errors
    /// If a standard deviation is not positive.
    pub fn normalize(&self) -> Result<Normalize> {
        Ok(Normalize::new(self.mean, self.std)?)
    }

    /// Whether views are made in `f32`.
    pub(crate) fn is_float(&self) -> Result<bool> {
        match self.arithmetic.as_str() {
            "u8" => Ok(false),
            "f32" => Ok(true),
            other => {
                Err(Error::Recipe(format!("augment.arithmetic = \"{other}\" is neither \"u8\" nor \"f32\"")))
            }
        }
    }

    /// The settings of each group of views.
    pub(crate) fn views(&self) -> Result<Vec<ViewConfig>> {
        let views = presets::by_name(&self.preset, self.size, self.strength).ok_or_else(|| {
            let names = presets::names().join(", ");
            Error::Recipe(format!("augment.preset = \"{}\" is unknown; available: {names}", self.preset))
        })?;
        let with_overrides = |view: &ViewConfig, group: Option<(usize, &Table)>| {
            let mut table = to_table(view)?;
            layers::merge(&mut table, self.overrides.clone())?;
            if let Some((i, group)) = group {
                layers::merge_at(&format!("augment.views[{i}]"), &mut table, group.clone())?;
            }
            from_table(table, "augment.")
        };
        if self.views.is_empty() {
            return views.iter().map(|view| with_overrides(view, None)).collect();
        }
        let groups = self.views.iter().enumerate();
        let groups = groups.filter_map(|(i, group)| Some((views.get(i).or(views.last())?, (i, group))));
        groups.map(|(view, group)| with_overrides(view, Some(group))).collect()
    }
}

/// Keys of a view that a recipe may change; its size and number belong to the preset.
pub(crate) fn view_keys() -> Result<Table> {
    let mut table = to_table(&ViewConfig::default())?;
    for key in ["size", "copies", "order"] {
        table.remove(key);
    }
    Ok(table)
}

/// Removes the view's keys from the table `[augment]` of `layer` and returns them.
pub(crate) fn take_view_keys(layer: &mut Table) -> Result<Table> {
    let Some(Value::Table(augment)) = layer.get_mut("augment") else { return Ok(Table::new()) };
    Ok(view_keys()?.keys().filter_map(|key| augment.remove_entry(key)).collect())
}

/// Removes the list `augment.views` from `layer` and returns it; an empty one if there is none.
pub(crate) fn take_groups(layer: &mut Table) -> Result<Value> {
    let augment = layer.get_mut("augment").and_then(Value::as_table_mut);
    match augment.and_then(|augment| augment.remove("views")) {
        None => Ok(Value::Array(Vec::new())),
        Some(Value::Array(groups)) if groups.iter().all(Value::is_table) => Ok(Value::Array(groups)),
        Some(other) => Err(Error::Recipe(format!(
            "augment.views = {other} is not a list of tables such as [{{ copies = 2, size = 32 }}]"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Recipe;

    fn parse(overrides: &[(&str, &str)]) -> Result<Recipe> {
        let overrides: Vec<_> = overrides.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Recipe::load("simclr-fashion-mnist", &overrides)
    }

    #[test]
    fn view_keys_replace_the_presets_in_every_view() {
        let recipe = parse(&[("augment.crop_scale", "[0.5, 1]"), ("augment.jitter.p", "0.25")]).unwrap();
        for view in recipe.augment.views().unwrap() {
            assert_eq!((view.crop_scale, view.jitter.p), ([0.5, 1.0], 0.25));
            assert!(view.jitter.hue > 0.0, "the other keys of jitter stay the preset's");
        }
    }

    #[test]
    fn groups_of_views_take_the_place_of_the_presets() {
        let swav = |groups: &str| {
            let recipe =
                parse(&[("augment.preset", "swav"), ("augment.flip_p", "0"), ("augment.views", groups)])?;
            assert_eq!(Recipe::parse(&recipe.to_toml()?, &[])?, recipe);
            Ok::<_, Error>(recipe)
        };
        let own = swav("[{copies = 3}, {size = 14, crop_scale = [0.1, 0.2], jitter = {p = 1}}, {size = 7}]")
            .unwrap();
        assert_eq!(own.view_sizes().unwrap(), [vec![28; 3], vec![14; 6], vec![7; 6]].concat());
        let views = own.augment.views().unwrap();
        assert_eq!((views[0].crop_scale, views[1].crop_scale), ([0.3, 1.0], [0.1, 0.2]));
        assert_eq!((views[1].jitter.p, views[1].flip_p), (1.0, 0.0));
        assert_eq!(swav("[]").unwrap().view_sizes().unwrap().len(), 8);
        for (groups, part) in [
            ("3", "augment.views = 3 is not a list of tables"),
            ("[1]", "is not a list of tables"),
            (
                "[{copys = 2}]",
                "unknown key `augment.views[0].copys`; did you mean `augment.views[0].copies`?",
            ),
            ("[{}, {size = \"big\"}]", "augment.views[1].size = \"big\" is text"),
            ("[{copies = 0}]", "copies is 0"),
        ] {
            let error = swav(groups).unwrap_err().to_string();
            assert!(error.contains(part), "{groups}: {error}");
        }
    }
}
