//! The page for people: who runs here, and how to check it. One document, no scripts, nothing loaded.

use dstack_api::RpcError;
use dstack_service::text::escape_html as escape;

use super::{evidence::Asker, state::State, system};

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.4rem}h2{font-size:1.05rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
th{text-align:left;font-weight:500;white-space:nowrap;vertical-align:top;padding:.25rem 1.5rem .25rem 0;color:#57606a}\
td{padding:.25rem 0;overflow-wrap:anywhere}code{font:13px/1.5 ui-monospace,monospace}\
.note{border-left:4px solid #bf8700;background:#fff8e5;padding:.5rem 1rem}\
@media(prefers-color-scheme:dark){body{color:#e6edf3;background:#0d1117}th{color:#8d96a0}.note{background:#2b2211}}";

/// The page as HTML.
pub(crate) async fn render(state: &State) -> Result<String, RpcError> {
    let application = &state.application;
    let document = application.compose.document();
    let name = escape(&document.name);
    let mut body = format!("<h1>{name}</h1>");
    if application.is_simulated || state.evidence.attester().device_name() == "simulated" {
        body.push_str(
            "<p class=\"note\"><strong>Software TEE.</strong> This VM runs for development, without confidential hardware. \
             Its evidence proves nothing about the machine.</p>",
        );
    }
    body.push_str(
        "<p>This application runs in a confidential VM. What this page says is only a claim; check it with \
         <code>dstack verify</code> and the address of this page, from a machine you trust.</p>",
    );
    let identity = [
        ("App id", application.app_id.to_string()),
        ("Instance id", application.instance_id.to_string()),
        ("Compose hash", application.compose.compose_hash().to_string()),
        ("OS image hash", hex::encode(&application.os_image_hash)),
        ("Key provider", application.key_provider_info.clone()),
        ("Guest agent", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    table(&mut body, "Identity", &identity);
    if document.public_tcbinfo {
        let tcb_info = state.tcb_info(Asker::Outside).await?;
        table(&mut body, "Measurements", &tcb_info.registers());
        let source = escape(&String::from_utf8_lossy(application.compose.raw()));
        body.push_str(&format!(
            "<h2>app-compose.json</h2><details><summary>Show what was measured</summary><pre><code>{source}</code></pre></details>"
        ));
    }
    if document.public_sysinfo {
        let info = system::read(&state.config.os_release);
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let rows = [
            ("Operating system", format!("{} {}", info.os_name, info.os_version)),
            ("Kernel", info.kernel_version.clone()),
            ("CPU", format!("{} × {}", info.num_cpus, info.cpu_model)),
            ("Memory", format!("{} of {} in use", mib(info.used_memory), mib(info.total_memory))),
            ("Up", format!("{} s", info.uptime)),
        ];
        table(&mut body, "System", &rows);
    }
    Ok(format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{name} · dstack</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    ))
}

fn table(body: &mut String, title: &str, rows: &[(&'static str, String)]) {
    body.push_str(&format!("<h2>{title}</h2><table>"));
    for (name, value) in rows {
        body.push_str(&format!("<tr><th>{name}</th><td><code>{}</code></td></tr>", escape(value)));
    }
    body.push_str("</table>");
}
