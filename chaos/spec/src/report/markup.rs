//! Writes XML and HTML elements with `quick-xml`'s writer and escapes every text. `junit`, `html` and `svg`
//! use it.

use std::io;

use quick_xml::Writer;
use quick_xml::events::BytesText;

/// An XML writer into memory.
pub(super) type Xml = Writer<Vec<u8>>;

/// Attributes of an element: names with values.
pub(super) type Attributes<'a> = &'a [(&'a str, &'a str)];

/// Writes an element with the content that `inner` writes.
pub(super) fn element(
    xml: &mut Xml,
    tag: &str,
    attributes: Attributes<'_>,
    inner: impl FnOnce(&mut Xml) -> io::Result<()>,
) -> io::Result<()> {
    let values = printables(attributes);
    xml.create_element(tag).with_attributes(paired(attributes, &values)).write_inner_content(inner)?;
    Ok(())
}

/// Writes an element with a text. It has an end tag even if the text is empty, as HTML requires.
pub(super) fn leaf(xml: &mut Xml, tag: &str, attributes: Attributes<'_>, text: &str) -> io::Result<()> {
    let values = printables(attributes);
    let element = xml.create_element(tag).with_attributes(paired(attributes, &values));
    element.write_text_content(BytesText::new(&printable(text)))?;
    Ok(())
}

/// Writes an empty element that closes itself: valid in HTML only for `meta` and within SVG.
pub(super) fn empty(xml: &mut Xml, tag: &str, attributes: Attributes<'_>) -> io::Result<()> {
    let values = printables(attributes);
    xml.create_element(tag).with_attributes(paired(attributes, &values)).write_empty()?;
    Ok(())
}

/// Writes a document: its first line unchanged, then what `inner` writes.
pub(super) fn document(
    first_line: &str,
    inner: impl FnOnce(&mut Xml) -> io::Result<()>,
) -> io::Result<String> {
    let mut xml = Writer::new_with_indent(format!("{first_line}\n").into_bytes(), b' ', 1);
    inner(&mut xml)?;
    let mut text = String::from_utf8(xml.into_inner()).map_err(io::Error::other)?;
    text.push('\n');
    Ok(text)
}

fn printables(attributes: Attributes<'_>) -> Vec<String> {
    attributes.iter().map(|(_, value)| printable(value)).collect()
}

fn paired<'a>(
    attributes: Attributes<'a>,
    values: &'a [String],
) -> impl IntoIterator<Item = (&'a str, &'a str)> {
    attributes.iter().zip(values).map(|((name, _), value)| (*name, value.as_str()))
}

/// Replaces characters that XML 1.0 cannot express, most control characters, by U+FFFD.
fn printable(text: &str) -> String {
    let allowed = |char: char| match char {
        '\n' | '\t' => true,
        '\u{fffe}' | '\u{ffff}' => false,
        other => !other.is_control(),
    };
    text.chars().map(|char| if allowed(char) { char } else { char::REPLACEMENT_CHARACTER }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use quick_xml::Reader;
    use quick_xml::events::Event;

    use super::*;

    /// Returns the names of all elements of a text; fails the test if the text is not well-formed.
    pub(in crate::report) fn elements(text: &str) -> Vec<String> {
        let mut reader = Reader::from_str(text);
        reader.config_mut().enable_all_checks(true);
        let (mut names, mut depth) = (Vec::new(), 0_usize);
        loop {
            let event = reader.read_event().unwrap_or_else(|e| panic!("at {}: {e}", reader.error_position()));
            match event {
                Event::Start(tag) | Event::Empty(tag) if tag.attributes().any(|a| a.is_err()) => {
                    panic!("{tag:?}")
                }
                Event::Start(tag) => {
                    depth += 1;
                    names.push(tag.name().as_ref().to_owned());
                }
                Event::Empty(tag) => names.push(tag.name().as_ref().to_owned()),
                Event::End(_) => depth -= 1,
                Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!(depth, 0, "every element is closed");
        names
    }

    #[test]
    fn texts_and_values_are_escaped_and_printable() {
        let text = document("<!doctype html>", |xml| {
            element(xml, "p", &[("title", "a\"b<c>\u{1b}")], |xml| {
                leaf(xml, "b", &[], "x ]]> & <script>\u{0}")?;
                leaf(xml, "i", &[], "")?;
                empty(xml, "rect", &[("x", "1")])
            })
        });
        assert_eq!(
            text.unwrap(),
            "<!doctype html>\n\
             <p title=\"a&quot;b&lt;c&gt;\u{fffd}\">\n <b>x ]]&gt; &amp; &lt;script&gt;\u{fffd}</b>\n \
             <i></i>\n <rect x=\"1\"/>\n</p>\n"
        );
    }
}
