//! `{% generation %}`, which Transformers adds to Jinja, in words that Jinja knows.
//!
//! Owns finding the tags in a template's source; comments, `raw` blocks and strings that
//! only look like tags stay as they are. Lines keep their numbers.

/// The filter that stands for a generation block.
pub(super) const GENERATION: &str = "__generation";

/// Rewrites `{% generation %}…{% endgeneration %}` to a filter block, and says whether
/// there was any.
pub(super) fn with_generation_filters(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 64);
    let (mut rest, mut found) = (source, false);
    while let Some((before, piece, after)) = next_piece(rest) {
        out.push_str(before);
        match tag_words(piece) {
            Some("generation") => {
                found = true;
                out.push_str(&piece.replacen("generation", &format!("filter {GENERATION}"), 1));
            }
            Some("endgeneration") => {
                out.push_str(&piece.replacen("endgeneration", "endfilter", 1));
            }
            Some("raw") => {
                let end = end_of_raw(after);
                out.push_str(piece);
                out.push_str(&after[..end]);
                rest = &after[end..];
                continue;
            }
            _ => out.push_str(piece),
        }
        rest = after;
    }
    (out + rest, found)
}

/// Splits at the next `{{ }}`, `{% %}` or `{# #}`; `None` where there is none that ends.
fn next_piece(source: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    loop {
        let start = from + source.get(from..)?.find('{')?;
        let inside = start + 2;
        let length = match source.get(start..inside) {
            Some("{#") => source[inside..].find("#}")?,
            Some("{%") => outside_strings(&source[inside..], "%}")?,
            Some("{{") => outside_strings(&source[inside..], "}}")?,
            _ => {
                from = start + 1;
                continue;
            }
        };
        let end = inside + length + 2;
        return Some((&source[..start], &source[start..end], &source[end..]));
    }
}

/// Where `needle` first stands outside a string literal.
fn outside_strings(text: &str, needle: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut at = 0;
    while at < bytes.len() {
        match (quote, bytes[at]) {
            (Some(_), b'\\') => at += 1,
            (Some(open), byte) if byte == open => quote = None,
            (None, b'\'' | b'"') => quote = Some(bytes[at]),
            (None, _) if bytes[at..].starts_with(needle.as_bytes()) => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// What stands between `{%` and `%}`, without white space and its control; `None` of
/// anything but a statement.
fn tag_words(piece: &str) -> Option<&str> {
    let inside = piece.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+'))
}

/// Length through the `{% endraw %}`.
fn end_of_raw(source: &str) -> usize {
    let mut from = 0;
    while let Some(start) = source[from..].find("{%").map(|at| from + at) {
        let Some(length) = source[start..].find("%}") else { break };
        let end = start + length + 2;
        if tag_words(&source[start..end]) == Some("endraw") {
            return end;
        }
        from = start + 2;
    }
    source.len()
}

#[cfg(test)]
mod tests {
    use super::with_generation_filters;

    #[test]
    fn only_tags_are_rewritten() {
        let kept = "{# {% generation %} #}{% raw %}{% generation %}{% endraw %}\
                    {{ '{% generation %}' }}{% if x == '%}' %}{% endif %}{ { {%";
        assert_eq!(with_generation_filters(kept), (kept.to_owned(), false));
        let (rewritten, found) =
            with_generation_filters("a{%- generation +%}b{% endgeneration -%}{{ 'é' }}");
        assert!(found);
        assert_eq!(rewritten, "a{%- filter __generation +%}b{% endfilter -%}{{ 'é' }}");
    }
}
