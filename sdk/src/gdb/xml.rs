//! As much of XML as stubs' objects need (GDB manual, "Target Descriptions", "Memory Map Format", "Thread List Format", "Library
//! List Format"): tags, their attributes, and the text behind them. It comes from somebody else: what is odd is left out, and
//! reading takes time in proportion to the text.

/// Which part of an element a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `<name>`
    Open,
    /// `</name>`
    Close,
    /// `<name/>`
    Whole,
}

/// A tag.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tag<'t> {
    pub(super) name: &'t str,
    pub(super) form: Form,
    attributes: &'t str,
    /// The text up to the next tag.
    pub(super) text: &'t str,
}

/// The tags of a text.
pub(super) struct Tags<'t> {
    rest: &'t str,
}

/// The tags of `text`, comments left out.
pub(super) fn tags(text: &str) -> Tags<'_> {
    Tags { rest: text }
}

/// Where the tag ends that `text` is the inside of: a `>` in quotes is part of a value.
fn end_of_tag(text: &str) -> Option<usize> {
    let mut quote = None;
    text.bytes().position(|b| {
        match quote {
            Some(q) if q == b => quote = None,
            Some(_) => {}
            None if matches!(b, b'"' | b'\'') => quote = Some(b),
            None => return b == b'>',
        }
        false
    })
}

impl<'t> Iterator for Tags<'t> {
    type Item = Tag<'t>;

    fn next(&mut self) -> Option<Tag<'t>> {
        loop {
            let start = self.rest.find('<')?;
            let inside = &self.rest[start + 1..];
            let skipped = [("!--", "-->"), ("![CDATA[", "]]>")];
            if let Some((rest, end)) = skipped.iter().find_map(|(b, e)| Some((inside.strip_prefix(b)?, *e))) {
                self.rest = rest.split_once(end).map_or("", |(_, behind)| behind);
                continue;
            }
            let Some(end) = end_of_tag(inside) else {
                self.rest = "";
                return None;
            };
            let (tag, behind) = (&inside[..end], &inside[end + 1..]);
            self.rest = behind;
            let (tag, form) = match (tag.strip_prefix('/'), tag.strip_suffix('/')) {
                (Some(t), _) => (t, Form::Close),
                (None, Some(t)) => (t, Form::Whole),
                (None, None) => (tag, Form::Open),
            };
            let (name, attributes) = tag.split_at(tag.find(|c: char| c.is_ascii_whitespace()).unwrap_or(tag.len()));
            let text = &behind[..behind.find('<').unwrap_or(behind.len())];
            return Some(Tag { name, form, attributes, text });
        }
    }
}

impl<'t> Tag<'t> {
    /// The value of an attribute, references to characters still in it.
    pub(super) fn attribute(&self, name: &str) -> Option<&'t str> {
        let mut rest = self.attributes;
        loop {
            let (key, behind) = rest.split_once('=')?;
            let behind = behind.trim_start();
            let quote = behind.chars().next().filter(|q| matches!(q, '"' | '\''))?;
            let (value, behind) = behind[1..].split_once(quote)?;
            if key.trim() == name {
                return Some(value);
            }
            rest = behind;
        }
    }

    /// The value of an attribute that is a number.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        number(self.attribute(name)?)
    }

    /// Does it begin an element of this name?
    pub(super) fn begins(&self, name: &str) -> bool {
        self.name == name && self.form != Form::Close
    }
}

/// A number as gdb reads them: C's notation, so that a leading 0 means octal.
fn number(text: &str) -> Option<u64> {
    let (digits, base) = match (text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")), text.strip_prefix('0')) {
        (Some(hex), _) => (hex, 16),
        (None, Some(octal)) if !octal.is_empty() => (octal, 8),
        _ => (text, 10),
    };
    // from_str_radix would take a sign.
    if digits.starts_with('+') { None } else { u64::from_str_radix(digits, base).ok() }
}

/// Is the element that the text consists of there to its end? Else something may be missing.
pub(super) fn is_whole(text: &str, root: &str) -> bool {
    let mut open = false;
    for t in tags(text).filter(|t| t.name == root) {
        match t.form {
            Form::Whole => return true,
            Form::Open => open = true,
            Form::Close => return open,
        }
    }
    false
}

/// Text for a message: references to characters replaced, printable, and no longer than about `most` bytes.
pub(super) fn plain(text: &str, most: usize) -> String {
    const NAMED: [(&str, char); 5] = [("lt", '<'), ("gt", '>'), ("quot", '"'), ("apos", '\''), ("amp", '&')];
    let mut out = String::new();
    let mut rest = text.trim();
    while let (Some(c), true) = (rest.chars().next(), out.len() < most) {
        rest = &rest[c.len_utf8()..];
        let named = NAMED.iter().find_map(|(n, c)| Some((*c, rest.strip_prefix(n)?.strip_prefix(';')?)));
        match named {
            Some((meant, behind)) if c == '&' => {
                out.push(meant);
                rest = behind;
            }
            _ if c.is_control() => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_names_attributes_and_text() {
        let text = "<?xml version='1.0'?><!-- <a x=\"1\"/> --><![CDATA[<a>]]><a x = \"p>q\" y='0x10'\n\tz=\"017\" xx=''>in &lt;<b/>\
                    behind</a >";
        let all: Vec<Tag<'_>> = tags(text).collect();
        let names: Vec<_> = all.iter().map(|t| (t.name, t.form)).collect();
        assert_eq!(names, [("?xml", Form::Open), ("a", Form::Open), ("b", Form::Whole), ("a", Form::Close)]);
        assert_eq!((all[1].attribute("x"), all[1].attribute("xx")), (Some("p>q"), Some("")));
        assert_eq!((all[1].number("y"), all[1].number("z"), all[1].number("x")), (Some(16), Some(15), None));
        assert_eq!((all[1].text, all[2].text, all[1].attribute("w")), ("in &lt;", "behind", None));
        assert!(is_whole(text, "a") && is_whole("<b/>", "b"));
        for cut in ["", "<a", "<a>", "</a>", "<a><b/>", "<a x='>"] {
            assert!(!is_whole(cut, "a"), "{cut}");
        }
    }

    #[test]
    fn numbers_are_those_of_c() {
        for (text, value) in
            [("0", 0), ("0x0", 0), ("10", 10), ("0XfF", 255), ("0xffffffffffffffff", u64::MAX), ("010", 8)]
        {
            assert_eq!(number(text), Some(value), "{text}");
        }
        for text in ["", "0x", "+1", "-1", "0x+1", "08", "1 ", "0x10000000000000000", "ä"] {
            assert_eq!(number(text), None, "{text}");
        }
    }

    #[test]
    fn text_is_made_fit_for_messages() {
        assert_eq!(plain(" a&amp;lt;b &quot;c&quot; &x; \x1b[31m&", 64), "a&lt;b \"c\" &x;  [31m&");
        assert!(plain(&"ä".repeat(1000), 64).len() < 70);
    }
}
