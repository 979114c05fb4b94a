//! YAML text to a tree whose every node knows where it stands.
//!
//! The only module that knows the YAML parser (granit-parser, by way of serde-saphyr).
//! Recipes are plain data, so anchors, aliases and tags are refused: what is read is what is
//! written, and no text can unfold into more than itself. Scalars stay text; what they mean
//! is decided by the type that asks (`decode`), so that `name: 2024` is a name.
//!
//! Reference: YAML 1.2.2, core schema.

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span};

use super::problem::{Fault, Place};

/// Deepest nesting; recipes need 5.
const MAX_DEPTH: usize = 32;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// Its first character.
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Text, and whether it stands without quotes.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    /// In the order of the file; keys are unique.
    Mapping(Vec<Entry>),
    /// Stands for a value that has been reported already: fits every type.
    Hole,
}

/// One key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) node: Node,
}

impl Node {
    /// Whether nothing is written here (`~`, `null`, or not a character).
    pub(super) fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar { text, plain: true } => {
                matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            _ => false,
        }
    }

    /// The node at `path` (`data.train[0].path` or `data.train.0.path`) and the place to
    /// point at: the value if it is a scalar, else its key.
    pub(super) fn find(&self, path: &str) -> Option<(&Node, &Place)> {
        let mut found = (self, &self.place);
        for segment in segments(path) {
            found = match &found.0.value {
                Value::Mapping(entries) => {
                    let entry = entries.iter().find(|entry| entry.key == segment)?;
                    match (&entry.node.value, &entry.node.place) {
                        // The value stands on the command line, whatever its shape.
                        (_, place @ Place::Set(_)) => (&entry.node, place),
                        (Value::Scalar { .. }, place) if !entry.node.is_null() => {
                            (&entry.node, place)
                        }
                        _ => (&entry.node, &entry.key_place),
                    }
                }
                Value::Sequence(nodes) => {
                    let node = nodes.get(segment.parse::<usize>().ok()?)?;
                    (node, &node.place)
                }
                _ => return None,
            };
        }
        Some(found)
    }

    /// The same, to change it.
    pub(super) fn find_mut(&mut self, path: &str) -> Option<&mut Node> {
        let mut node = self;
        for segment in segments(path) {
            node = match &mut node.value {
                Value::Mapping(entries) => {
                    &mut entries.iter_mut().find(|entry| entry.key == segment)?.node
                }
                Value::Sequence(nodes) => nodes.get_mut(segment.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(node)
    }
}

/// What keeps a value from being written as YAML.
pub type Unwritable = serde_saphyr::SerializeError;

/// Writes a value as YAML.
pub(super) fn write(value: &impl serde::Serialize) -> Result<String, Unwritable> {
    serde_saphyr::to_string(value)
}

/// The keys and indices of a path.
pub(super) fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split(['.', '[', ']']).filter(|segment| !segment.is_empty())
}

/// The path of `key` in the mapping at `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A tree, as far as there is one, and everything wrong with the text.
pub(super) struct Parsed {
    pub(super) root: Option<Node>,
    pub(super) faults: Vec<(Place, Fault)>,
}

/// Reads one YAML document.
pub(super) fn parse(text: &str) -> Parsed {
    let mut reader = Reader { events: Parser::new_from_str(text), faults: Vec::new() };
    let root = match reader.document() {
        Ok(root) => root,
        Err(fault) => {
            reader.faults.push(*fault);
            None
        }
    };
    Parsed { root, faults: reader.faults }
}

/// A fault after which the rest of the text cannot be understood.
type Fatal = Box<(Place, Fault)>;

struct Reader<I> {
    events: I,
    faults: Vec<(Place, Fault)>,
}

impl<'t, I: Iterator<Item = Result<(Event<'t>, Span), ScanError>>> Reader<I> {
    fn next(&mut self) -> Result<(Event<'t>, Place), Fatal> {
        loop {
            match self.events.next() {
                // Comments matter when the crate is built with them; they hold no data.
                Some(Ok((event, _))) if !event.is_node() && is_presentation(&event) => {}
                Some(Ok((event, span))) => return Ok((event, place(&span))),
                Some(Err(error)) => {
                    let marker = error.marker();
                    return Err(Box::new((
                        Place::File { line: marker.line(), column: marker.col() + 1 },
                        Fault::Syntax {
                            what: format!("this is not YAML: {}", error.info()),
                            hint: "check the indentation, the quotes and the brackets up to here"
                                .to_owned(),
                        },
                    )));
                }
                None => return Ok((Event::StreamEnd, Place::File { line: 1, column: 1 })),
            }
        }
    }

    fn document(&mut self) -> Result<Option<Node>, Fatal> {
        let mut root = None;
        loop {
            let (event, place) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => return Ok(root),
                _ if root.is_some() => {
                    return Err(refused(
                        place,
                        "a second YAML document begins here",
                        "keep one recipe in a file, without a second `---`",
                    ));
                }
                event => root = Some(self.node(event, place, "", 0)?),
            }
        }
    }

    fn node(
        &mut self,
        event: Event<'t>,
        place: Place,
        path: &str,
        depth: usize,
    ) -> Result<Node, Fatal> {
        if depth > MAX_DEPTH {
            return Err(refused(
                place,
                "this is nested deeper than any recipe",
                "remove the inner brackets",
            ));
        }
        self.refuse_references(&event, &place);
        let value = match event {
            Event::Scalar(text, style, ..) => Value::Scalar {
                text: text.into_owned(),
                plain: matches!(style, ScalarStyle::Plain),
            },
            Event::SequenceStart(..) => Value::Sequence(self.sequence(path, depth)?),
            Event::MappingStart(..) => Value::Mapping(self.mapping(path, depth)?),
            _ => Value::Hole,
        };
        Ok(Node { place, value })
    }

    fn sequence(&mut self, path: &str, depth: usize) -> Result<Vec<Node>, Fatal> {
        let mut nodes = Vec::new();
        loop {
            let (event, place) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(nodes);
            }
            let path = format!("{path}[{}]", nodes.len());
            nodes.push(self.node(event, place, &path, depth + 1)?);
        }
    }

    fn mapping(&mut self, path: &str, depth: usize) -> Result<Vec<Entry>, Fatal> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let (event, key_place) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => {
                    return Err(refused(
                        key_place,
                        "a key must be a word",
                        "write `key: value`; put text with brackets into quotes",
                    ));
                }
            };
            let key_path = join(path, &key);
            let (event, place) = self.next()?;
            let node = self.node(event, place, &key_path, depth + 1)?;
            if entries.iter().any(|entry| entry.key == key) {
                self.faults.push((key_place, Fault::DuplicateKey { key: key_path }));
            } else {
                entries.push(Entry { key, key_place, node });
            }
        }
    }

    /// Reports anchors, aliases and tags, and goes on.
    fn refuse_references(&mut self, event: &Event<'t>, place: &Place) {
        let what = match event {
            Event::Alias(..) => "aliases (`*name`) are not part of a recipe",
            _ if event.anchor_id().is_some() => "anchors (`&name`) are not part of a recipe",
            _ if event.tag().is_some() => "tags (`!name`) are not part of a recipe",
            _ => return,
        };
        self.faults.push(*refused(place.clone(), what, "write the value itself, or quote it"));
    }
}

/// Whether an event says how the text looks rather than what it holds.
fn is_presentation(event: &Event<'_>) -> bool {
    !matches!(
        event,
        Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(..)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd
    )
}

fn refused(place: Place, what: &str, hint: &str) -> Fatal {
    Box::new((place, Fault::Syntax { what: what.to_owned(), hint: hint.to_owned() }))
}

fn place(span: &Span) -> Place {
    Place::File { line: span.start.line(), column: span.start.col() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize) -> Place {
        Place::File { line, column }
    }

    fn faults(text: &str) -> Vec<(Place, String)> {
        let parsed = parse(text);
        parsed.faults.into_iter().map(|(place, fault)| (place, fault.to_string())).collect()
    }

    #[test]
    fn every_value_knows_its_place() {
        let parsed = parse("# note\na: 1\nb:\n  - { c: x }\n  - d: 'y'\ne:\n");
        assert!(parsed.faults.is_empty());
        let root = parsed.root.unwrap();
        assert_eq!(root.find("a").unwrap().1, &at(2, 4));
        assert_eq!(root.find("b").unwrap().1, &at(3, 1));
        assert_eq!(root.find("b[0].c").unwrap().1, &at(4, 10));
        assert_eq!(root.find("b.1.d").unwrap().1, &at(5, 8));
        assert_eq!(root.find("e").unwrap().1, &at(6, 1));
        assert!(root.find("b[2]").is_none() && root.find("a.b").is_none());
    }

    #[test]
    fn a_duplicate_key_is_reported_where_it_stands_again() {
        assert_eq!(
            faults("a: 1\nb: { c: 1, c: 2 }\na: 3\n"),
            [(at(2, 12), "`b.c` stands twice".into()), (at(3, 1), "`a` stands twice".into())]
        );
    }

    #[test]
    fn an_alias_bomb_is_refused_and_never_unfolds() {
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n";
        let found = faults(bomb);
        assert_eq!(found.len(), 6);
        assert_eq!(found[0].1, "anchors (`&name`) are not part of a recipe");
        assert_eq!(found[2].1, "aliases (`*name`) are not part of a recipe");
    }

    #[test]
    fn a_deep_nest_is_refused_without_exhausting_the_stack() {
        for deep in ["[".repeat(100_000), "- ".repeat(100_000), "{a: ".repeat(100_000)] {
            assert_eq!(faults(&deep).len(), 1);
        }
    }

    #[test]
    fn broken_text_is_placed() {
        let found = faults("a: 1\nb: [1, 2\nc: 3\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].1.starts_with("this is not YAML: "), "{}", found[0].1);
        assert!(matches!(found[0].0, Place::File { line: 2..=4, .. }), "{:?}", found[0].0);
    }
}
