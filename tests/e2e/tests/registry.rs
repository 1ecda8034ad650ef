//! Images can come from a registry: a real one on this host, pulled by the guest, pinned by digest.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use dstack_e2e::{Stack, get, hello, try_get};

struct Registry {
    process: Child,
    address: String,
}

impl Registry {
    fn start(folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = folder.join("registry.yml");
        let storage = folder.join("registry");
        let text =
            format!("version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n", storage.display());
        fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        let process = command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let registry = Self { process, address: format!("127.0.0.1:{port}") };
        let deadline = Instant::now() + Duration::from_secs(30);
        while try_get(&format!("http://{}/v2/", registry.address)).is_err() {
            assert!(Instant::now() < deadline, "the registry did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        registry
    }

    /// Pushes one image of the archive; returns the digest it is pinned by.
    fn push(&self, archive: &Path, name: &str, folder: &Path) -> String {
        let digest_file = folder.join("digest");
        let status = Command::new("skopeo")
            .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false", "--digestfile"])
            .arg(&digest_file)
            .arg(format!("oci-archive:{}:{name}:1", archive.display()))
            .arg(format!("docker://{}/library/{name}:1", self.address))
            .status()
            .unwrap();
        assert!(status.success(), "skopeo failed");
        fs::read_to_string(digest_file).unwrap().trim().to_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        let _reaped = self.process.wait();
    }
}

#[test]
fn a_guest_pulls_pinned_images_from_a_registry() {
    let folder = tempfile::tempdir().unwrap();
    let registry = Registry::start(folder.path());
    let example = hello();
    let mut compose = fs::read_to_string(example.join("docker-compose.yaml")).unwrap();
    for name in ["hello-web", "hello-app"] {
        let digest = registry.push(&example.join("hello-images.oci.tar"), name, folder.path());
        compose = compose.replace(&format!("{name}:1"), &format!("{name}@{digest}"));
    }
    let file = folder.path().join("docker-compose.yaml");
    fs::write(&file, compose).unwrap();
    let stack = Stack::start_with(&["--registry", &format!("http://{}", registry.address)]);

    let deployed = stack.dstack(&["deploy", "-c", file.to_str().unwrap(), "-n", "pulled", "-p", "auto:8080", "--yes"]);

    assert_eq!(deployed.code, 0, "{}", deployed.stderr);
    assert!(get(&stack.app("pulled").url).contains(&stack.app("pulled").app_id));
}
