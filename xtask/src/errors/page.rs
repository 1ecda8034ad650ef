//! `docs/reference/errors.md`.

use std::{collections::BTreeMap, fmt::Write as _};

use super::catalog::Catalog;

const HEAD: &str = "<!-- Written by `cargo xtask docs`; do not edit. -->
# Errors

Every error that dstack reports has a stable code, says what happened, and says what to do. Scripts rely on the code alone:

```
dstack: error: creating hello [vmm/not-enough-memory]
  cause: 4096 MiB asked, 1024 of 2048 MiB left for VMs on this node
  fix:   ask for less, stop another VM, or raise the limit in the node's [cvm] settings
```

The part before the slash names who found it. `<…>` stands for a value.
";

/// Who gives the codes of a component.
const COMPONENTS: [(&str, &str); 31] = [
    ("agent", "the guest agent, to the application or to a stranger"),
    ("attestation", "the verification of evidence"),
    ("attester", "the collection of evidence inside a VM"),
    ("authorization", "the allow list of a KMS"),
    ("boot", "`dstack`, about a guest that did not come up"),
    ("cli", "`dstack` itself"),
    ("collateral", "the fetching of vendors' collateral"),
    ("compose", "the reading of a compose file"),
    ("config", "a program's configuration file"),
    ("deploy", "`dstack deploy`"),
    ("env", "the reading and sealing of secrets"),
    ("guest", "dstack-init, while a VM boots; the host shows it"),
    ("host", "the VMM, to a guest"),
    ("image", "OS images"),
    ("kms", "dstack-kms, and those who ask it"),
    ("log", "`dstack log`"),
    ("measure", "`dstack measure`"),
    ("os", "`dstack os build` and `dstack os lock`"),
    ("policy", "a verification policy, and `dstack policy`"),
    ("ra-tls", "connections whose certificates carry evidence"),
    ("rpc", "calls between programs"),
    ("stack", "the local stack: `dstack up` and `dstack down`"),
    ("supervisor", "dstack-supervisor, and those who ask it"),
    ("tee", "the software TEE, to a VMM"),
    ("tee-simulator", "the software TEE's service"),
    ("tool", "programs of others that dstack runs"),
    ("verify", "`dstack verify`"),
    ("verifier", "dstack-verifier"),
    ("vm", "`dstack`, about one VM"),
    ("vmm", "dstack-vmm"),
    ("volume", "packed container images"),
];

/// What comes before the slash.
pub(crate) fn component_of(code: &str) -> &str {
    code.split('/').next().unwrap_or_default()
}

/// Who gives the codes of a component, if that is written down.
pub(crate) fn who_gives(component: &str) -> Option<&'static str> {
    COMPONENTS.iter().find(|(name, _)| *name == component).map(|(_, who)| *who)
}

/// The page's text.
pub(crate) fn render(catalog: &Catalog) -> String {
    let mut components: BTreeMap<&str, Vec<&String>> = BTreeMap::new();
    for code in catalog.codes.keys() {
        components.entry(component_of(code)).or_default().push(code);
    }
    let mut text = HEAD.to_owned();
    for (component, codes) in components {
        let who = who_gives(component).unwrap_or_default();
        let _ = write!(text, "\n## {component}\n\nFrom {who}.\n\n| code | what happened | what to do |\n|---|---|---|\n");
        for code in codes {
            let Some(occasions) = catalog.codes.get(code) else { continue };
            let causes = occasions.iter().flat_map(|occasion| &occasion.causes);
            let fixes = occasions.iter().flat_map(|occasion| &occasion.fixes);
            let _ = writeln!(text, "| `{code}` | {} | {} |", cell(causes), cell(fixes));
        }
    }
    text
}

fn cell<'a>(texts: impl Iterator<Item = &'a String>) -> String {
    let mut shown: Vec<String> = Vec::new();
    for text in texts {
        let text = text.trim().replace('|', "\\|").replace('<', "&lt;").replace('\n', " ");
        if !text.is_empty() && !shown.contains(&text) {
            shown.push(text);
        }
    }
    if shown.is_empty() { "as the cause says".to_owned() } else { shown.join("<br>") }
}
