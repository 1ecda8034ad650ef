//! Which registry the container engine may be told to use.
//!
//! The host names a registry in `.sys-config.json`, which is not measured: whoever answers there could give other content
//! for a tag. So the host's registry is used only if every image of the app is pinned by digest or came with a volume.

use std::collections::BTreeSet;

use serde::Serialize;

/// `daemon.json` of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct EngineConfig {
    data_root: &'static str,
    storage_driver: &'static str,
    exec_opts: [&'static str; 1],
    log_driver: &'static str,
    log_opts: LogOptions,
    log_level: &'static str,
    ip6tables: bool,
    userland_proxy: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    registry_mirrors: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    insecure_registries: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
struct LogOptions {
    max_size: &'static str,
    max_file: &'static str,
}

impl EngineConfig {
    /// Configuration with the host's registry, or without one.
    #[must_use]
    pub fn new(registry: Option<&str>) -> Self {
        let insecure = registry.and_then(|url| url.strip_prefix("http://")).map(|rest| rest.trim_end_matches('/').to_owned());
        Self {
            data_root: "/var/lib/docker",
            storage_driver: "overlay2",
            exec_opts: ["native.cgroupdriver=cgroupfs"],
            log_driver: "json-file",
            log_opts: LogOptions { max_size: "100m", max_file: "10" },
            log_level: "warn",
            ip6tables: false,
            userland_proxy: false,
            registry_mirrors: registry.map(|url| normalized(url).to_owned()).into_iter().collect(),
            insecure_registries: insecure.into_iter().collect(),
        }
    }
}

fn normalized(url: &str) -> &str {
    url.trim_end_matches('/')
}

/// The host's registry if it may be used, or why not.
///
/// `registry`: text of the host. `preloaded`: references of images that came with volumes.
///
/// Errors: an image that is not pinned, or text that is not an address.
pub fn usable_registry<'a>(registry: &'a str, compose_file: &str, preloaded: &[&str]) -> Result<Option<&'a str>, String> {
    if registry.is_empty() {
        return Ok(None);
    }
    let host = registry.strip_prefix("http://").or_else(|| registry.strip_prefix("https://")).unwrap_or_default();
    if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:[]/".contains(&b)) {
        return Err(format!("{:?} is not an http or https address", crate::console::printable(registry)));
    }
    match unpinned_images(compose_file, preloaded) {
        Some(unpinned) if unpinned.is_empty() => Ok(Some(registry)),
        Some(unpinned) => Err(format!("not pinned by digest: {}", unpinned.into_iter().collect::<Vec<_>>().join(", "))),
        None => Err("the compose file builds or includes something, which cannot be pinned".to_owned()),
    }
}

/// Images that a registry could swap; `None` if that cannot be said.
fn unpinned_images(compose_file: &str, preloaded: &[&str]) -> Option<BTreeSet<String>> {
    let document: serde_yaml_ng::Value = serde_yaml_ng::from_str(compose_file).ok()?;
    if document.get("include").is_some() {
        return None;
    }
    let mut unpinned = BTreeSet::new();
    for (_, service) in document.get("services")?.as_mapping()? {
        if service.get("build").is_some() || service.get("extends").is_some() {
            return None;
        }
        let image = service.get("image")?.as_str()?;
        if !is_pinned(image) && !preloaded.contains(&image) {
            unpinned.insert(image.to_owned());
        }
    }
    Some(unpinned)
}

fn is_pinned(image: &str) -> bool {
    image
        .split_once("@sha256:")
        .is_some_and(|(name, digest)| !name.contains('$') && digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    const PINNED: &str = "services:\n  web:\n    image: nginx@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n  app:\n    image: hello:1\n";

    #[test]
    fn a_registry_is_used_when_everything_is_pinned_or_preloaded() {
        assert_eq!(usable_registry("http://10.0.2.2:5000", PINNED, &["hello:1"]).unwrap(), Some("http://10.0.2.2:5000"));
        assert_eq!(usable_registry("", PINNED, &[]).unwrap(), None);
    }

    #[test]
    fn a_registry_that_could_swap_an_image_is_not_used() {
        assert!(usable_registry("http://10.0.2.2:5000", PINNED, &[]).unwrap_err().contains("hello:1"));
        for compose in [
            "services:\n  a:\n    build: .\n",
            "include: [x]\nservices: {}\n",
            "services:\n  a:\n    image: x@sha256:${D}\n",
            "not: yaml: at all",
            "services:\n  a: {}\n",
        ] {
            assert!(usable_registry("https://mirror", compose, &[]).is_err(), "{compose}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in ["ftp://x", "http://", "http://a\"b", "10.0.2.2:5000"] {
            assert!(usable_registry(bad, PINNED, &["hello:1"]).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_http_registry_is_also_allowed_as_insecure() {
        let json = serde_json::to_value(EngineConfig::new(Some("http://10.0.2.2:5000/"))).unwrap();

        assert_eq!(json["registry-mirrors"][0], "http://10.0.2.2:5000");
        assert_eq!(json["insecure-registries"][0], "10.0.2.2:5000");
        assert!(serde_json::to_value(EngineConfig::new(Some("https://m"))).unwrap().get("insecure-registries").is_none());
        assert!(serde_json::to_value(EngineConfig::new(None)).unwrap().get("registry-mirrors").is_none());
    }
}
