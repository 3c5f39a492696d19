//! What the admin port's pages look like, made of the text that `info` is: `name:value`, one a line.

use std::fmt::Write;

pub(super) const PLAIN: &str = "text/plain; charset=utf-8";
pub(super) const HTML: &str = "text/html; charset=utf-8";
pub(super) const JSON: &str = "application/json";
pub(super) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

const HEAD: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"2\">\
<meta name=\"viewport\" content=\"width=device-width\"><title>ringkv</title><style>\
body{font:15px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
td{padding:.1rem 1rem .1rem 0;border-bottom:1px solid #ddd}td+td{text-align:right;font-variant-numeric:tabular-nums}\
table{border-collapse:collapse;width:100%}.ok{color:#17692f}.bad{color:#b00020}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}td{border-color:#333}.ok{color:#6bd48a}.bad{color:#ff8a8a}}\
</style><h1>ringkv</h1>";

/// The page for people: health, then every figure, anew every two seconds.
pub(super) fn html(health: &Result<(), String>, info: &str) -> String {
    let mut out = String::with_capacity(HEAD.len() + info.len() * 2);
    out.push_str(HEAD);
    let _ = match health {
        Ok(()) => write!(out, "<p class=\"ok\">healthy</p>"),
        Err(why) => write!(out, "<p class=\"bad\">{}</p>", escape(why)),
    };
    out.push_str("<table>");
    for (name, value) in pairs(info) {
        let _ = write!(out, "<tr><td>{}<td>{}", escape(name), escape(value));
    }
    out.push_str("</table><p><a href=\"/metrics\">metrics</a> · <a href=\"/info\">info</a> · <a href=\"/health\">health</a></html>\n");
    out
}

/// One flat object; values that are numbers are numbers.
pub(super) fn json(info: &str) -> String {
    let fields: Vec<String> =
        pairs(info).map(|(name, value)| format!("{}:{}", quote(name), number(value).unwrap_or_else(|| quote(value)))).collect();
    format!("{{{}}}\n", fields.join(","))
}

fn pairs(info: &str) -> impl Iterator<Item = (&str, &str)> {
    info.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name.trim(), value.trim()))
}

/// The value as JSON spells it, if it is a number.
fn number(value: &str) -> Option<String> {
    let digits = !value.is_empty() && value.len() < 20 && value.bytes().all(|byte| byte.is_ascii_digit());
    if digits && (value == "0" || !value.starts_with('0')) {
        return Some(value.to_owned());
    }
    let plain = value.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'));
    value.parse::<f64>().ok().filter(|number| plain && number.is_finite()).map(|number| number.to_string())
}

fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(out, "\\{c}"),
            c if u32::from(c) < 0x20 => write!(out, "\\u{:04x}", u32::from(c)),
            c => write!(out, "{c}"),
        };
    }
    out.push('"');
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keeps_numbers_as_numbers_and_quotes_the_rest() {
        let info = "role:node\nkeys:12\nlag:0.5\nversion:0.1.0\nzip:007\nodd \"name\\:a:b\nnoise\nbig:18446744073709551615\n";
        let expected = concat!(
            r#"{"role":"node","keys":12,"lag":0.5,"version":"0.1.0","zip":7,"odd \"name\\":"a:b","big":18446744073709552000}"#,
            "\n"
        );
        assert_eq!(json(info), expected);
        assert_eq!(quote("a\u{1}"), "\"a\\u0001\"");
    }

    #[test]
    fn the_page_shows_every_figure_and_runs_nothing_it_is_told() {
        let page = html(&Err("<script>".to_owned()), "keys:12\n<b>:&\n");
        assert!(page.contains("<tr><td>keys<td>12") && page.contains("&lt;script&gt;") && page.contains("<td>&lt;b&gt;<td>&amp;"));
        assert!(!page.contains("<script>") && html(&Ok(()), "").contains("healthy"));
    }
}
