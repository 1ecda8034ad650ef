//! The services' configuration files.

use std::{fmt::Write as _, path::Path};

use dstack_service::fs::write_atomic;

use super::settings::Settings;
use crate::{
    failure::{Failure, Outcome},
    home::Home,
};

/// Address under which guests reach 127.0.0.1 of this machine (QEMU's user network).
pub(super) const HOST_SEEN_BY_GUESTS: &str = "10.0.2.2";

/// A path as a TOML string.
fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

/// `supervisor.toml`.
#[must_use]
pub(super) fn supervisor(home: &Home) -> String {
    format!(
        "socket = {}\nstate_dir = {}\npid_file = {}\n",
        quoted(&home.supervisor_socket()),
        quoted(&home.service("supervisor")),
        quoted(&home.root().join("supervisor.pid"))
    )
}

/// `tee-simulator.toml`.
#[must_use]
pub(super) fn tee_simulator(home: &Home, settings: &Settings) -> String {
    format!(
        "control_socket = {}\nstate_dir = {}\ncollateral_listen = \"127.0.0.1:{}\"\n",
        quoted(&home.service("tee").join("control.sock")),
        quoted(&home.service("tee").join("state")),
        settings.collateral_port
    )
}

/// `kms.toml`.
#[must_use]
pub(super) fn kms(home: &Home, settings: &Settings) -> String {
    let kms = home.service("kms");
    let mut text = format!("listen = \"127.0.0.1:{}\"\ncert_dir = {}\n", settings.kms_port, quoted(&kms.join("certs")));
    let _never = write!(
        text,
        "allow_list = {}\ncollateral_url = \"http://127.0.0.1:{}\"\n\n# A local stack has no hardware to rely on.\n[danger]\nrun_without_tee = true\nsimulated_root = {}\n",
        quoted(&allow_list(home)),
        settings.collateral_port,
        quoted(&simulated_root(home))
    );
    text
}

/// `vmm.toml`.
#[must_use]
pub(super) fn vmm(home: &Home, settings: &Settings, tools: &VmmTools<'_>) -> String {
    let vmm = home.service("vmm");
    let kms_url = format!("https://127.0.0.1:{}/prpc", settings.kms_port);
    let guest_kms_url = format!("https://{HOST_SEEN_BY_GUESTS}:{}/prpc", settings.kms_port);
    let mut text = format!(
        "address = \"127.0.0.1:{}\"\nrun_path = {}\ndatabase = {}\nnode_name = \"local\"\nkms_url = \"{kms_url}\"\nkms_ca_file = {}\n",
        settings.vmm_port,
        quoted(&vmm.join("vm")),
        quoted(&vmm.join("vmm.sqlite")),
        quoted(&kms_ca(home)),
    );
    let _never = write!(
        text,
        "\n[image]\npath = {}\n\n[auth]\ntoken_file = {}\n\n[supervisor]\nsock = {}\n\n[tee_simulator]\ncontrol = {}\n",
        quoted(&settings.images),
        quoted(&token_file(home)),
        quoted(&home.supervisor_socket()),
        toml::Value::String(format!("unix:{}", home.service("tee").join("control.sock").display()))
    );
    let _never = write!(
        text,
        "\n[cvm]\nqemu_path = {}\nvhost_device_vsock = {}\nkms_urls = [\"{guest_kms_url}\"]\npccs_url = \"http://{HOST_SEEN_BY_GUESTS}:{}\"\nvolumes_dir = {}\n",
        quoted(tools.qemu),
        quoted(tools.vhost_device_vsock),
        settings.collateral_port,
        quoted(&home.volumes())
    );
    if !settings.registry.is_empty() {
        let _never = writeln!(text, "docker_registry = {}", toml::Value::String(seen_by_guests(&settings.registry)));
    }
    text
}

/// An address of this machine as its guests reach it.
fn seen_by_guests(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.find([':', '/']).map_or((rest, ""), |end| rest.split_at(end));
    let host = if matches!(host, "127.0.0.1" | "localhost") { HOST_SEEN_BY_GUESTS } else { host };
    format!("{scheme}://{host}{path}")
}

/// Programs that the VMM starts.
#[derive(Debug, Clone, Copy)]
pub(super) struct VmmTools<'a> {
    /// `qemu-system-x86_64`.
    pub qemu: &'a Path,
    /// `vhost-device-vsock`.
    pub vhost_device_vsock: &'a Path,
}

/// `verify.toml`: evidence of this stack, judged by its own software TEE's root.
#[must_use]
pub(super) fn verify(home: &Home, settings: &Settings) -> String {
    format!(
        "# How evidence of this local stack is judged. `dstack verify` uses it by itself for apps of this stack only.\n\
         collateral_url = \"http://127.0.0.1:{}\"\nimage_store = {}\nkms_ca = {}\n\n\
         # The root of the local software TEE. What it signs proves nothing about hardware.\n[danger]\nsimulated_root = {}\n",
        settings.collateral_port,
        quoted(&settings.images),
        quoted(&kms_ca(home)),
        quoted(&simulated_root(home))
    )
}

/// Who gets keys from the local KMS.
#[must_use]
pub(super) fn allow_list(home: &Home) -> std::path::PathBuf {
    home.service("kms").join("allow-list.toml")
}

/// Root certificate of the local KMS.
#[must_use]
pub(super) fn kms_ca(home: &Home) -> std::path::PathBuf {
    home.service("kms").join("certs").join("root-ca.crt")
}

/// Root certificate of the local software TEE.
#[must_use]
pub(super) fn simulated_root(home: &Home) -> std::path::PathBuf {
    home.service("tee").join("state").join("root.pem")
}

/// Access token of the local VMM.
#[must_use]
pub(super) fn token_file(home: &Home) -> std::path::PathBuf {
    home.service("vmm").join("token")
}

/// Writes a configuration unless it is there already; says whether it changed.
///
/// Errors: not writable.
pub(super) fn write(path: &Path, text: &str) -> Outcome<bool> {
    let text = format!("# Written by `dstack up`; changes are overwritten.\n{text}");
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    write_atomic(path, text.as_bytes(), 0o600).map_err(|error| Failure::io("writing", path, &error))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::seen_by_guests;

    #[test]
    fn guests_reach_this_machine_by_another_address() {
        assert_eq!(seen_by_guests("http://127.0.0.1:5000"), "http://10.0.2.2:5000");
        assert_eq!(seen_by_guests("https://localhost/cache"), "https://10.0.2.2/cache");
        assert_eq!(seen_by_guests("https://registry.example:5000"), "https://registry.example:5000");
    }
}
