//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{kms::KmsCommand, log::LogCommand, measure::MeasureArgs, policy::PolicyCommand};

const EXAMPLES: &str = "\
Examples:
  dstack up                                              start the local stack
  dstack deploy -c docker-compose.yaml -n hello -e .env  run a compose file in a confidential VM
  dstack verify hello --allow-simulated                  check its evidence
  dstack down                                            stop everything";

/// Run docker-compose files in confidential virtual machines, and verify them.
#[derive(Debug, Parser)]
#[command(name = "dstack", version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Arguments {
    /// Print results as JSON.
    #[arg(long, short = 'j', global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the local stack: supervisor, software TEE, KMS and VMM.
    Up(UpArgs),
    /// Stop the local stack and everything that runs on it.
    Down(DownArgs),
    /// Run a compose file in a new confidential VM.
    Deploy(Box<DeployArgs>),
    /// List the VMs.
    Ps(VmmArgs),
    /// Show the log of a VM.
    Logs(LogsArgs),
    /// Show a VM in detail.
    Info(VmArgs),
    /// Stop a VM.
    Stop(StopArgs),
    /// Start a stopped VM.
    Start(StartArgs),
    /// Remove VMs with their disks.
    Rm(RmArgs),
    /// Verify the evidence of an app and name what the verdict rests on.
    Verify(Box<VerifyArgs>),
    /// Build and list OS images.
    #[command(subcommand)]
    Os(OsCommand),
    /// Work with container images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Compute what an OS image must measure to, or explain where evidence differs.
    Measure(Box<MeasureArgs>),
    /// Operate a KMS: key epochs, recovery shares.
    #[command(subcommand)]
    Kms(KmsCommand),
    /// Test, explain, simulate and serve the policy of a KMS.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Verify and watch the release log of a KMS.
    #[command(subcommand)]
    Log(LogCommand),
    /// Print the completions of a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Options of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Directory with the OS images, instead of the local stack's own.
    #[arg(long, value_name = "DIR", env = "DSTACK_IMAGES")]
    pub images: Option<PathBuf>,
    /// Registry that guests pull from first, such as http://127.0.0.1:5000; an app uses it only if its images are pinned by digest.
    /// Empty text forgets it.
    #[arg(long, value_name = "URL", env = "DSTACK_REGISTRY")]
    pub registry: Option<String>,
    /// Seconds that each service gets until it answers.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
}

/// Options of `down`.
#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Remove VMs, disks, keys and configuration as well; packed images and OS images stay.
    #[arg(long)]
    pub purge: bool,
    /// Do not wait for guests to shut down.
    #[arg(long)]
    pub now: bool,
}

/// Which VMM to talk to.
#[derive(Debug, Clone, Args)]
pub(crate) struct VmmArgs {
    /// Address of a VMM (`http://host:port` or `unix:/path`); default is the local stack.
    #[arg(long, value_name = "URL", env = "DSTACK_VMM_URL")]
    pub vmm: Option<String>,
    /// File with the VMM's access token.
    #[arg(long, value_name = "FILE", env = "DSTACK_VMM_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// Options of `deploy`.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The compose file.
    #[arg(short = 'c', long = "compose", value_name = "FILE", default_value = "docker-compose.yaml")]
    pub compose: PathBuf,
    /// Name of the app; default is the compose file's `name` or its folder.
    #[arg(short = 'n', long)]
    pub name: Option<String>,
    /// Environment file with secrets; sealed here, opened only inside the VM.
    #[arg(short = 'e', long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
    /// Derivations of the app's keys: as every KMS and client knows them, or with labels, epochs and keys for each instance. An app keeps
    /// the scheme it has: other keys do not open its disk. An environment (-e) needs `compatible`.
    #[arg(long, value_name = "SCHEME", value_parser = ["compatible", "separated"], default_value = "compatible")]
    pub key_scheme: String,
    /// OS image; default is the newest one of the VMM.
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// OCI archive with container images to carry into the VM.
    #[arg(long = "image-archive", value_name = "FILE")]
    pub image_archives: Vec<PathBuf>,
    /// Publish a port: GUEST, HOST:GUEST, PROTO:HOST:GUEST or PROTO:ADDRESS:HOST:GUEST; HOST may be `auto`.
    /// Replaces what the compose file publishes for that guest port.
    #[arg(short = 'p', long = "port", value_name = "SPEC")]
    pub ports: Vec<String>,
    /// Virtual CPUs.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub vcpu: u32,
    /// Memory, such as 2G or 1536M; a bare number is MiB.
    #[arg(long, value_name = "SIZE", default_value = "2G")]
    pub memory: String,
    /// Data disk, such as 10G; a bare number is GiB.
    #[arg(long, value_name = "SIZE", default_value = "10G")]
    pub disk: String,
    /// Return as soon as the VM is accepted.
    #[arg(long)]
    pub no_wait: bool,
    /// Seconds to wait for the boot, and again for the first HTTP answer.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    /// Do not ask before the allow list is extended.
    #[arg(short = 'y', long)]
    pub yes: bool,
    /// Write app-compose.json to FILE (`-` is stdout), show its hash, and stop.
    #[arg(long, value_name = "FILE")]
    pub dry_run: Option<PathBuf>,
    /// Address of the KMS, as the guest reaches it; needed for a VMM that is not local.
    #[arg(long, value_name = "URL")]
    pub kms_url: Option<String>,
    /// PEM file with the root certificate of the KMS; needed for a VMM that is not local.
    #[arg(long, value_name = "FILE")]
    pub kms_ca: Option<PathBuf>,
    /// The VMM.
    #[command(flatten)]
    pub vmm: VmmArgs,
}

/// One VM.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// Name, VM id or app id; the first digits of an id suffice.
    pub name: String,
    /// The VMM.
    #[command(flatten)]
    pub vmm: VmmArgs,
}

/// Options of `stop`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArgs,
    /// Cut the power instead of asking the guest.
    #[arg(short = 'f', long)]
    pub force: bool,
    /// Seconds that the guest gets before its power is cut.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
}

/// Options of `start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArgs,
    /// Return at once.
    #[arg(long)]
    pub no_wait: bool,
    /// Seconds to wait for the boot.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
}

/// Options of `rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names, VM ids or app ids.
    #[arg(required = true)]
    pub names: Vec<String>,
    /// Stop a running VM first, and do not ask.
    #[arg(short = 'f', long)]
    pub force: bool,
    /// The VMM.
    #[command(flatten)]
    pub vmm: VmmArgs,
}

/// Options of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Which VM.
    #[command(flatten)]
    pub vm: VmArgs,
    /// Go on until interrupted.
    #[arg(short = 'f', long)]
    pub follow: bool,
    /// Last lines to show.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub lines: u32,
    /// Which of the VM's logs.
    #[arg(long, value_enum, default_value_t = Channel::Serial)]
    pub channel: Channel,
}

/// A VM's logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Channel {
    /// The guest's console.
    Serial,
    /// What QEMU printed.
    Stdout,
    /// What QEMU complained about.
    Stderr,
}

const VERIFY_HELP: &str = "\
INPUT is recognised by its content: a TDX or SGX quote, an SNP report, a Nitro document (raw, hex or base64); JSON with `quote`,
`attestation`, `report` or `certificate`; an attestation envelope; a PEM or DER certificate with evidence; a bundle of --save;
a URL; the name of an app of the local stack.

Exit codes: 0 verified, 1 not verified, 2 wrong usage, 3 could not be determined.";

/// Options of `verify`.
#[derive(Debug, Args)]
#[command(after_help = VERIFY_HELP)]
pub(crate) struct VerifyArgs {
    /// URL of an app, name of a VM of the local stack, or a file with evidence (`-` is stdin).
    #[arg(value_name = "INPUT")]
    pub source: String,
    /// Intel's collateral, JSON with the fields of QuoteCollateralV3; default is the evidence's own, then Intel's service.
    #[arg(long, value_name = "FILE")]
    pub collateral: Option<PathBuf>,
    /// Certificates of the evidence (VCEK or VLEK, ASK), or a revocation list over them, PEM or DER. May be repeated.
    #[arg(long, value_name = "FILE")]
    pub chain: Vec<PathBuf>,
    /// The moment at which everything must be valid, such as 2026-08-28T05:21:19Z; default is now.
    #[arg(long, value_name = "RFC3339")]
    pub at: Option<String>,
    /// Root certificate to trust in place of the vendor's. The verdict under another root is SIMULATED.
    #[arg(long, value_name = "FILE")]
    pub root: Option<PathBuf>,
    /// Event log of the guest, JSON.
    #[arg(long, value_name = "FILE")]
    pub event_log: Option<PathBuf>,
    /// Event log of the firmware, binary (CCEL).
    #[arg(long, value_name = "FILE")]
    pub ccel: Option<PathBuf>,
    /// Report data that the evidence must carry, hex, at most 64 bytes, zeros are added behind.
    #[arg(long, value_name = "HEX")]
    pub report_data: Option<String>,
    /// The challenge, hex, at most 64 bytes: sent to a URL, expected in a file. Default for a URL is a fresh one.
    #[arg(long, value_name = "HEX", conflicts_with = "report_data")]
    pub nonce: Option<String>,
    /// Appraisal policy, TOML: what genuine evidence must satisfy to be accepted.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Settings, TOML: collateral service, trust anchors, known images, expected app and KMS.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Contact nobody: the papers must be in the input, in --collateral or --chain, or in the settings.
    #[arg(long)]
    pub offline: bool,
    /// Count evidence of a software TEE as success. It proves nothing about hardware.
    #[arg(long)]
    pub allow_simulated: bool,
    /// Save the evidence with its papers as a bundle, to be verified again anywhere.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
}

/// Commands about OS images.
#[derive(Debug, Subcommand)]
pub(crate) enum OsCommand {
    /// Build an OS image from pinned packages.
    Build(OsBuildArgs),
    /// Renew the lock file from what the archive offers now.
    Lock(OsLockArgs),
    /// List the OS images.
    List {
        /// Directory with the images.
        #[arg(long, value_name = "DIR", env = "DSTACK_IMAGES")]
        images: Option<PathBuf>,
    },
}

/// A flavour of the OS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Flavor {
    /// For real TEEs; contains no simulator.
    Production,
    /// May run under the software TEE.
    Development,
}

/// Options of `os build`.
#[derive(Debug, Args)]
pub(crate) struct OsBuildArgs {
    /// Which flavour.
    #[arg(long, value_enum, default_value_t = Flavor::Production)]
    pub flavor: Flavor,
    /// Directory to put the image into.
    #[arg(long, value_name = "DIR", env = "DSTACK_IMAGES")]
    pub images: Option<PathBuf>,
    /// Folder of the recipe.
    #[arg(long, value_name = "DIR")]
    pub recipe: Option<PathBuf>,
    /// Folder with the guest's programs, built for this flavour; default is to build them with cargo.
    #[arg(long, value_name = "DIR")]
    pub guest_bin: Option<PathBuf>,
    /// Build even if an image of the same inputs is there.
    #[arg(long)]
    pub force: bool,
}

/// Options of `os lock`.
#[derive(Debug, Args)]
pub(crate) struct OsLockArgs {
    /// Folder of the recipe.
    #[arg(long, value_name = "DIR")]
    pub recipe: Option<PathBuf>,
}

/// Commands about container images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Pack OCI archives into a read-only volume with a verity root.
    Pack {
        /// OCI archives.
        #[arg(required = true, value_name = "FILE")]
        archives: Vec<PathBuf>,
        /// Directory to put the volume into; default is the local stack's.
        #[arg(short = 'o', long, value_name = "DIR")]
        output: Option<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use clap::{CommandFactory as _, Parser as _};

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }

    /// The `dstack` commands of a document's console blocks, without comments.
    fn commands(text: &str) -> Vec<String> {
        let blocks = text.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
        let lines = blocks.flat_map(str::lines).map(|line| line.split(" #").next().unwrap_or_default());
        lines
            .flat_map(|line| line.split("&&"))
            .map(|command| command.trim().to_owned())
            .filter(|command| command.starts_with("dstack "))
            .collect()
    }

    #[test]
    fn every_command_that_a_newcomer_reads_is_one() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for document in ["README.md", "examples/hello/README.md"] {
            let text = fs::read_to_string(root.join(document)).unwrap_or_else(|error| panic!("{document}: {error}"));
            let found = commands(&text);
            assert!(!found.is_empty(), "{document} shows no command");
            for command in found {
                let parsed = super::Arguments::try_parse_from(command.split_whitespace());
                assert!(parsed.is_ok(), "{document}: {command}: {}", parsed.err().map(|error| error.to_string()).unwrap_or_default());
            }
        }
    }
}
