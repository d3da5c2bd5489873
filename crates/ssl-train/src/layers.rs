//! Recipes in layers: defaults, then a recipe file, then single keys from the command line, each checked against what
//! the defaults have.

use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::error::{Error, Result};

/// Lays `overrides` (`key.path`, value as TOML or bare text) over `table`, in order.
///
/// The keys of a table belong to its `name`: where an override changes the name, the other keys of the old one go.
pub(crate) fn apply(table: &mut Table, overrides: &[(String, String)]) -> Result<()> {
    let (names, others): (Vec<_>, Vec<_>) = overrides.iter().partition(|(key, _)| key.ends_with(".name"));
    for (key, text) in names.into_iter().chain(others) {
        let mut parts: Vec<&str> = key.split('.').collect();
        let Some(last) = parts.pop().filter(|last| !last.is_empty() && parts.iter().all(|p| !p.is_empty()))
        else {
            return Err(Error::Recipe(format!("`{key}` is not a key; keys look like `optimizer.lr`")));
        };
        let mut place = &mut *table;
        for part in &parts {
            let entry = place.entry(*part).or_insert_with(|| Value::Table(Table::new()));
            place = match entry {
                Value::Table(inner) => inner,
                other => {
                    return Err(Error::Recipe(format!(
                        "`{part}` in `{key}` is {}, not a table",
                        kind(other)
                    )));
                }
            };
        }
        let value = parse(text);
        if last == "name" && !parts.is_empty() && place.get("name").is_some_and(|old| old != &value) {
            place.clear();
        }
        place.insert(last.to_owned(), value);
    }
    Ok(())
}

/// A value as it stands behind `--set key=`: TOML if it is, else text without quotes.
fn parse(text: &str) -> Value {
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    parsed.unwrap_or_else(|| Value::String(text.to_owned()))
}

/// Overwrites the values of `reference` by those of `layer`.
///
/// # Errors
/// If `layer` has a key that `reference` lacks, or a value of another type.
pub(crate) fn merge(reference: &mut Table, layer: Table) -> Result<()> {
    merge_at("", reference, layer)
}

/// [`merge`] for tables that stand at `path` in the recipe.
pub(crate) fn merge_at(path: &str, reference: &mut Table, layer: Table) -> Result<()> {
    let known = key_paths(reference, path);
    merge_below(reference, layer, path, &known)
}

fn merge_below(reference: &mut Table, layer: Table, path: &str, known: &[String]) -> Result<()> {
    for (key, value) in layer {
        let path = join(path, &key);
        let Some(slot) = reference.get_mut(&key) else {
            return Err(unknown_key(&first_key(&path, &value), known));
        };
        match (slot, value) {
            (Value::Table(inner), Value::Table(layer)) => merge_below(inner, layer, &path, known)?,
            (slot @ Value::Float(_), Value::Integer(whole)) => *slot = Value::Float(whole as f64),
            (Value::Integer(_), value @ Value::Integer(..=-1)) => {
                return Err(Error::Recipe(format!("{path} = {value} is not in 0..={}", i64::MAX)));
            }
            (Value::Array(slot), Value::Array(items)) => *slot = like(slot, items, &path)?,
            (slot, value) if slot.same_type(&value) => *slot = value,
            (slot, value) => {
                return Err(Error::Recipe(format!(
                    "{path} = {value} is {}, expected {} such as {slot}",
                    kind(&value),
                    kind(slot)
                )));
            }
        }
    }
    Ok(())
}

/// `items` with the types of `slot`. A list of numbers with a fraction is a point or a range, of fixed length; a list of
/// whole numbers counts something and may have any length, as a list of texts.
fn like(slot: &[Value], items: Vec<Value>, path: &str) -> Result<Vec<Value>> {
    let floats = slot.iter().any(Value::is_float);
    let texts = slot.iter().any(Value::is_str);
    let shown = || Value::Array(items.clone());
    if floats && items.len() != slot.len() {
        let (found, wanted) = (items.len(), slot.len());
        return Err(Error::Recipe(format!("{path} = {} has {found} numbers, expected {wanted}", shown())));
    }
    let convert = |item: &Value| match item {
        Value::Integer(whole) if floats => Ok(Value::Float(*whole as f64)),
        Value::Float(_) if floats => Ok(item.clone()),
        Value::String(_) if texts => Ok(item.clone()),
        Value::Integer(0..) if !floats && !texts => Ok(item.clone()),
        _ => {
            let wanted = match (floats, texts) {
                (true, _) => "numbers",
                (_, true) => "texts",
                _ => "whole numbers from 0 on",
            };
            Err(Error::Recipe(format!("{path} = {} must hold {wanted}, got {item}", shown())))
        }
    };
    items.iter().map(convert).collect()
}

/// The dotted path of the first value below `value`, which stands at `path`.
fn first_key(path: &str, value: &Value) -> String {
    match value.as_table().and_then(|table| table.iter().next()) {
        Some((key, inner)) => first_key(&join(path, key), inner),
        None => path.to_owned(),
    }
}

fn unknown_key(path: &str, known: &[String]) -> Error {
    let nearest = known.iter().max_by(|a, b| {
        let likeness = |key: &str| strsim::normalized_damerau_levenshtein(path, key);
        likeness(a).total_cmp(&likeness(b))
    });
    let section = path.rsplit_once('.').map_or("", |(section, _)| section);
    let siblings: Vec<&str> = known
        .iter()
        .filter_map(|key| key.strip_prefix(section)?.strip_prefix('.'))
        .filter(|_| !section.is_empty())
        .collect();
    let hint = match nearest {
        Some(key) if strsim::normalized_damerau_levenshtein(path, key) > 0.7 => {
            format!("; did you mean `{key}`?")
        }
        _ if siblings.is_empty() => "; `cargo xtask pretrain --print-recipe` shows all keys".to_owned(),
        _ => format!("; `{section}` has: {}", siblings.join(", ")),
    };
    Error::Recipe(format!("unknown key `{path}`{hint}"))
}

/// The dotted paths of all values below `table`.
fn key_paths(table: &Table, path: &str) -> Vec<String> {
    let below = table.iter().flat_map(|(key, value)| match value {
        Value::Table(inner) => key_paths(inner, &join(path, key)),
        _ => vec![join(path, key)],
    });
    below.collect()
}

/// The keys whose values differ, with both values: `optimizer.lr: 0.1 there, 0.2 here`.
pub(crate) fn differences(there: &Table, here: &Table) -> Vec<String> {
    fn collect(there: &Table, here: &Table, path: &str, found: &mut Vec<String>) {
        let keys: std::collections::BTreeSet<&String> = there.keys().chain(here.keys()).collect();
        for key in keys {
            let path = join(path, key);
            match (there.get(key), here.get(key)) {
                (Some(Value::Table(a)), Some(Value::Table(b))) => collect(a, b, &path, found),
                (a, b) if a == b => {}
                (a, b) => {
                    let show = |v: Option<&Value>| v.map_or("nothing".to_owned(), Value::to_string);
                    found.push(format!("{path}: {} there, {} here", show(a), show(b)));
                }
            }
        }
    }
    let mut found = Vec::new();
    collect(there, here, "", &mut found);
    found
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "text",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a table",
    }
}

pub(crate) fn to_table<T: Serialize>(value: &T) -> Result<Table> {
    Table::try_from(value).map_err(|e| Error::Recipe(e.to_string()))
}

/// `path` is where the table stands in a recipe, with its dot.
pub(crate) fn from_table<T: DeserializeOwned>(table: Table, path: &str) -> Result<T> {
    Value::Table(table).try_into().map_err(|e: toml::de::Error| {
        // The key is told by the error's second line alone.
        let text = e.to_string();
        let key = text.lines().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'));
        Error::Recipe(key.map_or(e.message().to_owned(), |key| format!("{path}{key}: {}", e.message())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    fn merged(reference: &str, layer: &str) -> Result<Table> {
        let mut reference = table(reference);
        merge(&mut reference, table(layer)).map(|()| reference)
    }

    #[test]
    fn values_are_replaced_key_by_key() {
        let result =
            merged("[a]\nx = 1.5\ny = 2\n[b]\nz = [0.5, 1.0]", "[a]\nx = 3\n[b]\nz = [1, 2]").unwrap();
        assert_eq!(result, table("[a]\nx = 3.0\ny = 2\n[b]\nz = [1.0, 2.0]"));
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_refused_by_name() {
        let reference = "[optimizer]\nlr = 0.1\non = true\nsteps = 3\nrange = [0.5, 1.0]\nmarks = [1]\n\
                         texts = [\"a\"]";
        for (layer, message) in [
            ("[optimzer]\nlr = 1.0", "recipe: unknown key `optimzer.lr`; did you mean `optimizer.lr`?"),
            ("[optimzer]", "recipe: unknown key `optimzer`"),
            ("[optimizer]\nlrr = 1.0", "unknown key `optimizer.lrr`; did you mean `optimizer.lr`?"),
            ("[optimizer]\nsomething = 1.0", "`optimizer` has: "),
            ("[optimizer]\nlr = \"big\"", "optimizer.lr = \"big\" is text, expected a number such as 0.1"),
            (
                "[optimizer]\non = 1",
                "optimizer.on = 1 is a whole number, expected true or false such as true",
            ),
            ("[optimizer]\nsteps = -3", "optimizer.steps = -3 is not in 0..="),
            ("[optimizer]\nrange = [0]", "optimizer.range = [0] has 1 numbers, expected 2"),
            ("[optimizer]\nrange = [0, true]", "optimizer.range = [0, true] must hold numbers, got true"),
            ("[optimizer]\ntexts = [\"b\", 1]", "optimizer.texts = [\"b\", 1] must hold texts, got 1"),
            ("[optimizer]\nmarks = [2, -1]", "must hold whole numbers from 0 on, got -1"),
        ] {
            let error = merged(reference, layer).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn a_new_name_clears_the_keys_of_the_old_one() {
        let mut base = table("[optimizer]\nname = \"adamw\"\nbeta1 = 0.9");
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        apply(&mut base, &[set("optimizer.lr", "0.5"), set("optimizer.name", "sgd")]).unwrap();
        assert_eq!(base, table("[optimizer]\nname = \"sgd\"\nlr = 0.5"));
        apply(&mut base, &[set("a.b", "[1, 2]"), set("c", "plain text")]).unwrap();
        assert_eq!(base["a"], Value::Table(table("b = [1, 2]")));
        assert_eq!(base["c"].as_str(), Some("plain text"));
    }

    #[test]
    fn differences_name_both_sides() {
        let found = differences(&table("x = 1\n[a]\ny = 2"), &table("x = 1\n[a]\ny = 3\nz = 4"));
        assert_eq!(found, ["a.y: 2 there, 3 here", "a.z: nothing there, 4 here"]);
    }
}
