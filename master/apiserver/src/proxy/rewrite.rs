//! Links in proxied answers: an absolute path in a `Location` header or in an HTML attribute is moved below
//! the proxy's own path, as stock's proxy transport does.

/// HTML attributes that hold URLs.
const ATTRIBUTES: [&str; 9] =
    ["href=", "src=", "action=", "background=", "cite=", "codebase=", "data=", "formaction=", "poster="];

/// A link as it must be for a client of the proxy; `None` where it stays.
pub fn link(link: &str, base: &str) -> Option<String> {
    let absolute = link.starts_with('/') && !link.starts_with("//") && !link.starts_with(base);
    absolute.then(|| format!("{base}{link}"))
}

/// An HTML page with its links moved.
pub fn html(page: &str, base: &str) -> String {
    let mut out = String::with_capacity(page.len() + 256);
    let mut rest = page;
    while let Some((at, length)) = next_attribute(rest) {
        let (before, value) = rest.split_at(at + length);
        out.push_str(before);
        rest = value;
        let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else { continue };
        let Some(end) = value[1..].find(quote) else { continue };
        let url = &value[1..=end];
        out.push(quote);
        out.push_str(&link(url, base).unwrap_or_else(|| url.to_owned()));
        rest = &value[end + 1..];
    }
    out.push_str(rest);
    out
}

/// The first attribute that holds a URL: where, and how long up to its value.
fn next_attribute(text: &str) -> Option<(usize, usize)> {
    let lower = text.to_ascii_lowercase();
    ATTRIBUTES.iter().filter_map(|a| lower.find(a).map(|at| (at, a.len()))).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_links_move_below_the_proxy_and_others_stay() {
        let page = "<a href=\"/x\">t</a><img src='/y.png'><a href=\"http://e/x\">e</a><a href=\"z\">z</a>";
        let want = "<a href=\"/p/proxy/x\">t</a><img src='/p/proxy/y.png'><a href=\"http://e/x\">e</a><a href=\"z\">z</a>";
        assert_eq!(html(page, "/p/proxy"), want);
    }

    #[test]
    fn a_page_without_an_end_stays_as_it_is() {
        for page in ["<a href=", "<a href=\"", "<a href=\"/x", "", "href='"] {
            assert_eq!(html(page, "/p"), page);
        }
    }
}
