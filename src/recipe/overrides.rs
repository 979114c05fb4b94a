//! `--set a.b=c`: changes to a recipe from the command line.
//!
//! A change is made in the tree before it is decoded, so that an unknown key or a wrong type
//! is reported in the same words as in the file, only with `--set` as its place.

use super::problem::{Fault, Place};
use super::yaml::{self, Entry, Node, Value, join, segments};

/// Makes the change that `words` (`key=value`) ask for.
pub(super) fn apply(root: &mut Node, words: &str) -> Result<(), Vec<(Place, Fault)>> {
    let place = Place::Set(words.to_owned());
    let refuse = |what: String, hint: &str| {
        Err(vec![(place.clone(), Fault::Override { what, hint: hint.to_owned() })])
    };
    let Some((key, text)) = words.split_once('=').filter(|(key, _)| !key.trim().is_empty()) else {
        return refuse(
            "this is not `key=value`".to_owned(),
            "write, for example, `train.epochs=3`",
        );
    };
    let parsed = yaml::parse(text);
    if !parsed.faults.is_empty() {
        let faults = parsed.faults.into_iter();
        return Err(faults.map(|(_, fault)| (place.clone(), fault)).collect());
    }
    let null =
        Node { place: place.clone(), value: Value::Scalar { text: String::new(), plain: true } };
    let mut value = parsed.root.unwrap_or(null);
    move_to(&mut value, &place);
    match slot(root, key.trim(), &place) {
        Ok(slot) => {
            *slot = value;
            Ok(())
        }
        Err(what) => refuse(what, "give the whole value of the key above it"),
    }
}

/// The node at `path`, made if only mappings are missing on the way.
fn slot<'t>(root: &'t mut Node, path: &str, place: &Place) -> Result<&'t mut Node, String> {
    let mut node = root;
    let mut walked = String::new();
    for segment in segments(path) {
        if node.is_null() {
            node.value = Value::Mapping(Vec::new());
        }
        node = match &mut node.value {
            Value::Mapping(entries) => {
                let known = entries.iter().position(|entry| entry.key == segment);
                let index = known.unwrap_or_else(|| {
                    let null = Value::Scalar { text: String::new(), plain: true };
                    let node = Node { place: place.clone(), value: null };
                    let key = segment.to_owned();
                    entries.push(Entry { key, key_place: place.clone(), node });
                    entries.len() - 1
                });
                let entry = entries.get_mut(index);
                &mut entry.ok_or_else(|| format!("`{walked}` has no `{segment}`"))?.node
            }
            Value::Sequence(nodes) => {
                let length = nodes.len();
                let node = segment.parse().ok().and_then(|index: usize| nodes.get_mut(index));
                node.ok_or_else(|| {
                    format!(
                        "`{walked}` is a list of {length}; `{segment}` is not one of 0 to {}",
                        length.saturating_sub(1)
                    )
                })?
            }
            _ => return Err(format!("`{walked}` has no keys")),
        };
        walked = join(&walked, segment);
    }
    Ok(node)
}

/// Everything in a node stands where the option stands.
fn move_to(node: &mut Node, place: &Place) {
    node.place = place.clone();
    match &mut node.value {
        Value::Sequence(nodes) => nodes.iter_mut().for_each(|node| move_to(node, place)),
        Value::Mapping(entries) => entries.iter_mut().for_each(|entry| {
            entry.key_place = place.clone();
            move_to(&mut entry.node, place);
        }),
        _ => {}
    }
}
