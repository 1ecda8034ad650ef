//! The page: plain HTML with forms, no script.

use std::fmt::Write as _;

use dstack_api::{RpcError, kms::AttestationInfoResponse};

use dstack_service::text::escape_html as escape;

use crate::key_store::KeyStore;

const HEAD: &str = include_str!("page_head.html");

/// What the last request did.
pub(super) enum Notice<'a> {
    /// It went well.
    Done(&'a str),
    /// The service goes on with the keys.
    Finished,
    /// It did not.
    Failed(&'a RpcError),
}

/// What is shown.
pub(super) struct Content<'a> {
    pub(super) machine: Result<&'a AttestationInfoResponse, &'a RpcError>,
    pub(super) keys: Result<Option<&'a KeyStore>, &'a RpcError>,
    pub(super) domain: &'a str,
    pub(super) needs_token: bool,
    pub(super) notice: Option<Notice<'a>>,
}

/// The whole document.
pub(super) fn render(content: &Content<'_>) -> String {
    let mut html = HEAD.to_owned();
    notice(&mut html, content.notice.as_ref());
    match content.keys {
        Ok(Some(store)) => keys(&mut html, store, content),
        Ok(None) => choices(&mut html, content),
        Err(error) => failure(&mut html, "The keys of this KMS cannot be used", error),
    }
    match content.machine {
        Ok(info) => machine(&mut html, info),
        Err(error) => failure(&mut html, "This machine's own evidence does not hold", error),
    }
    html.push_str("</main></body></html>\n");
    html
}

fn notice(html: &mut String, notice: Option<&Notice<'_>>) {
    match notice {
        None => {}
        Some(Notice::Done(text)) => add(html, format_args!("<p class=\"good\" role=\"status\">{}</p>", escape(text))),
        Some(Notice::Finished) => html.push_str("<p class=\"good\" role=\"status\">Finished. The KMS now serves with these keys.</p>"),
        Some(Notice::Failed(error)) => failure(html, "That did not work", error),
    }
}

fn failure(html: &mut String, title: &str, error: &RpcError) {
    add(
        html,
        format_args!(
            "<div class=\"bad\" role=\"alert\"><p><strong>{}</strong> <code>{}</code></p><p>{}</p><p>{}</p></div>",
            escape(title),
            escape(&error.code),
            escape(&error.message),
            escape(&error.fix)
        ),
    );
}

fn keys(html: &mut String, store: &KeyStore, content: &Content<'_>) {
    html.push_str("<section aria-labelledby=\"keys\"><h2 id=\"keys\">Root keys</h2><dl>");
    row(html, "Root CA public key (SPKI)", &hex::encode(store.root.spki_der()));
    row(html, "k256 public key", &hex::encode(store.keys.k256.public_key()));
    let evidence = store.bootstrap_info.as_ref().map(|info| info.attestation.as_slice());
    match evidence {
        Some([]) => row(html, "Evidence over both", "none: there is no TEE here"),
        Some(bytes) => {
            let value = hex::encode(bytes);
            add(
                html,
                format_args!(
                    "<dt>Evidence over both</dt><dd><details><summary>{} bytes</summary><code>{value}</code></details></dd>",
                    bytes.len()
                ),
            );
        }
        None => row(html, "Evidence over both", "with the KMS that made them"),
    }
    html.push_str("</dl><p>Compare the keys with those of your other KMS, or register them, before you finish.</p><form method=\"post\" action=\"/done\">");
    token(html, content.needs_token, "done");
    html.push_str("<button>Finish and serve</button></form></section>");
}

fn choices(html: &mut String, content: &Content<'_>) {
    html.push_str(
        "<p>This KMS has no keys yet. Make new ones for a new system, or take over those of a KMS that runs. Either is done once.</p>\
         <section aria-labelledby=\"new\"><h2 id=\"new\">Make new root keys</h2><form method=\"post\" action=\"/bootstrap\">",
    );
    domain(html, content.domain, "new-domain");
    token(html, content.needs_token, "new");
    html.push_str(
        "<button>Make new root keys</button></form></section>\
         <section aria-labelledby=\"join\"><h2 id=\"join\">Join a KMS that runs</h2><form method=\"post\" action=\"/onboard\">\
         <label for=\"source\">Address of the other KMS</label><input id=\"source\" name=\"source_url\" type=\"url\" required placeholder=\"https://kms.example.com:8000\">",
    );
    domain(html, content.domain, "join-domain");
    token(html, content.needs_token, "join");
    html.push_str("<button>Receive its keys</button></form></section>");
}

fn domain(html: &mut String, value: &str, id: &str) {
    add(
        html,
        format_args!(
            "<label for=\"{id}\">DNS name of this KMS</label><input id=\"{id}\" name=\"domain\" required maxlength=\"253\" value=\"{}\">",
            escape(value)
        ),
    );
}

fn token(html: &mut String, is_needed: bool, id: &str) {
    if is_needed {
        add(
            html,
            format_args!(
                "<label for=\"{id}-token\">Token</label><input id=\"{id}-token\" name=\"token\" type=\"password\" autocomplete=\"off\" required>"
            ),
        );
    }
}

fn machine(html: &mut String, info: &AttestationInfoResponse) {
    html.push_str("<section aria-labelledby=\"machine\"><h2 id=\"machine\">This machine</h2>");
    if info.tee_variant == "none" {
        html.push_str("<p class=\"bad\">No TEE protects this KMS. Its keys lie open to the owner of the machine.</p>");
    } else {
        html.push_str("<p>The policy of every KMS of the system must allow these values.</p>");
    }
    html.push_str("<dl>");
    if !info.site_name.is_empty() {
        row(html, "Site", &info.site_name);
    }
    row(html, "TEE", &info.tee_variant);
    for (label, bytes) in [
        ("Aggregated measurement", &info.mr_aggregated),
        ("OS image", &info.os_image_hash),
        ("Device id", &info.device_id),
        ("PPID", &info.ppid),
    ] {
        if !bytes.is_empty() {
            row(html, label, &hex::encode(bytes));
        }
    }
    html.push_str("</dl></section>");
}

fn row(html: &mut String, label: &str, value: &str) {
    add(html, format_args!("<dt>{}</dt><dd><code>{}</code></dd>", escape(label), escape(value)));
}

fn add(html: &mut String, text: std::fmt::Arguments<'_>) {
    let _never = html.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_become_markup() {
        let error = RpcError::new("kms/x", "<script>alert('1')</script>", "\"quotes\" & more");
        let html = render(&Content {
            machine: Err(&error),
            keys: Ok(None),
            domain: "\"><b>",
            needs_token: true,
            notice: Some(Notice::Failed(&error)),
        });

        assert!(!html.contains("<script>alert") && !html.contains("\"><b>"), "{html}");
        assert!(html.contains("&lt;script&gt;alert(&#39;1&#39;)"));
        assert!(html.contains("type=\"password\""));
    }
}
