//! `dstack kms …` against a KMS in this process: epochs, shares, drills, and the root brought back.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests panic on purpose")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use age::secrecy::ExposeSecret as _;
use dstack_kms::{OnboardingServer, Server, config::Settings};
use dstack_testkit::software_tee::Running;
use serde_json::Value;

struct World {
    directory: tempfile::TempDir,
}

/// How a command ended: whether well, its result as JSON, and what it printed for people.
struct Answer {
    is_success: bool,
    json: Value,
    err: String,
}

impl World {
    fn new() -> Self {
        let world = Self { directory: tempfile::tempdir().unwrap() };
        std::fs::write(world.path("allow.toml"), "version = 1\n").unwrap();
        std::fs::write(world.path("token"), "0123456789abcdef0123\n").unwrap();
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn settings(&self, cert_dir: &str, first_start: &str) -> Settings {
        let text = format!(
            "listen = \"127.0.0.1:0\"\ncert_dir = \"{d}/{cert_dir}\"\nallow_list = \"{d}/allow.toml\"\ncollateral_url = \"http://127.0.0.1:1\"\n\
             [onboard]\nfirst_start = \"{first_start}\"\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"{d}/token\"\n\
             [danger]\nrun_without_tee = true\n",
            d = self.directory.path().display()
        );
        let path = self.path(&format!("{cert_dir}.toml"));
        std::fs::write(&path, text).unwrap();
        Settings::load(&path).unwrap()
    }

    async fn kms(&self) -> (SocketAddr, Running) {
        let server = Server::open(self.settings("kms", "bootstrap")).await.unwrap();
        let admin = server.admin_addr().unwrap();
        (admin, Running::start(|stopped| async move { server.run(async { drop(stopped.await) }).await.unwrap() }))
    }

    /// An age identity in a file; its recipient.
    fn custodian(&self, name: &str) -> String {
        let identity = age::x25519::Identity::generate();
        let text = format!("# made by a test\n{}\n", identity.to_string().expose_secret());
        std::fs::write(self.path(name), text).unwrap();
        identity.to_public().to_string()
    }

    async fn dstack(&self, arguments: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dstack"));
        command.args(["--json", "kms"]).args(arguments).env("DSTACK_HOME", self.directory.path()).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        Answer {
            is_success: output.status.success(),
            json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Shares for three custodians, two needed.
    async fn shares(&self, admin: &str) {
        let recipients = ["alice", "bob", "carol"].map(|name| self.custodian(name));
        let [alice, bob, carol] = recipients.each_ref().map(String::as_str);
        let (token, out) = (self.text("token"), self.text("shares"));
        let mut arguments = vec!["recovery", "create", "--admin", admin, "--token-file", &token, "--threshold", "2", "-o", &out];
        for recipient in [alice, bob, carol] {
            arguments.extend(["--custodian", recipient]);
        }
        let created = self.dstack(&arguments).await;
        assert!(created.is_success, "{}", created.err);
        assert_eq!(created.json["files"].as_array().unwrap().len(), 3);
    }

    fn share(&self, number: usize) -> String {
        self.text(&format!("shares/share-{number}-of-3.json"))
    }
}

fn mode_of(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn epochs_are_listed_and_rotated() {
    let world = World::new();
    let (admin, _running) = world.kms().await;
    let (admin, token) = (format!("http://{admin}"), world.text("token"));
    let epochs = async |arguments: &[&str]| {
        world.dstack(&[&["epochs", arguments[0], "--admin", &admin, "--token-file", &token], &arguments[1..]].concat()).await
    };

    assert_eq!(epochs(&["list"]).await.json["epochs"][0]["state"], "current");
    let rotated = epochs(&["rotate", "--activate-in", "60", "--readable-for", "60"]).await;
    assert_eq!((&rotated.json["epochs"][1]["epoch"], &rotated.json["epochs"][1]["state"]), (&2.into(), &"announced".into()));
    let refused = epochs(&["rotate"]).await;
    assert!(!refused.is_success && refused.err.contains("kms/epoch-pending"), "{}", refused.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_custodian_checks_a_share_alone_and_with_the_others() {
    let world = World::new();
    let (admin, _running) = world.kms().await;
    let (admin, token) = (format!("http://{admin}"), world.text("token"));
    world.shares(&admin).await;
    assert_eq!(mode_of(Path::new(&world.share(1))), 0o600);

    let alone = world.dstack(&["recovery", "drill", &world.share(1), "-i", &world.text("alice")]).await;
    assert_eq!((alone.is_success, &alone.json["threshold"]), (true, &2.into()), "{}", alone.err);
    let wrong = world.dstack(&["recovery", "drill", &world.share(1), "-i", &world.text("bob")]).await;
    assert!(!wrong.is_success && wrong.err.contains("kms/bad-share"), "{}", wrong.err);

    let together = async |number: usize, name: &str| {
        let (share, identity) = (world.share(number), world.text(name));
        world.dstack(&["recovery", "drill", &share, "-i", &identity, "--admin", &admin, "--token-file", &token]).await
    };
    let first = together(3, "carol").await;
    assert_eq!((&first.json["received"], first.json.get("is_complete")), (&1.into(), Some(&false.into())), "{}", first.err);
    let second = together(1, "alice").await;
    assert_eq!(second.json["is_complete"], true, "{}", second.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_is_given_to_a_kms_that_proves_nothing_only_when_told_so() {
    let world = World::new();
    let (admin, running) = world.kms().await;
    world.shares(&format!("http://{admin}")).await;
    running.stop().await;
    let waiting = OnboardingServer::open(&world.settings("restored", "wait")).await.unwrap().unwrap();
    let onboard = format!("http://{}", waiting.local_addr().unwrap());
    tokio::spawn(waiting.run(std::future::pending()));
    let restore = async |number: usize, name: &str, proof: &[&str]| {
        let (share, identity) = (world.share(number), world.text(name));
        world.dstack(&[&["recovery", "restore", &share, "-i", &identity, "--onboard", &onboard], proof].concat()).await
    };

    let refused = restore(1, "alice", &["--measurement", &"00".repeat(32)]).await;
    assert!(!refused.is_success && refused.err.contains("kms/recipient-not-believed"), "{}", refused.err);
    assert!(!restore(1, "alice", &[]).await.is_success, "one of the two must be said");
    assert!(!world.path("restored").exists());

    assert_eq!(restore(1, "alice", &["--danger-unattested"]).await.json["is_complete"], false);
    let second = restore(2, "bob", &["--danger-unattested"]).await;
    assert_eq!(second.json["is_complete"], true, "{}", second.err);
    let key = |dir: &str| std::fs::read(world.path(dir).join("root-k256.key")).unwrap();
    assert_eq!(key("restored"), key("kms"));
}
