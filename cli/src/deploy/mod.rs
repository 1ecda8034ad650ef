//! `dstack deploy`: from a compose file to a running, verified-able VM.
//!
//! ```text
//! compose file, archives, env names ─▶ app-compose.json ─▶ compose hash ─▶ app id
//!                                          │                   │
//!                       allow list of the local KMS ◀──────────┤ (shown, confirmed)
//!                       env key of the KMS, verified ◀─────────┘ ─▶ sealed environment
//!                                          └──────▶ CreateVm ─▶ boot ─▶ first HTTP answer
//! ```

mod allow;
mod app;
mod images;
mod probe;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use dstack_api::vmm::{ImageInfo, PortMapping, VmConfiguration, VmInfo};
use dstack_key_hierarchy::{EnvVar, seal_env};
use dstack_manifest::{AppCompose, AppId, ComposeHash};
use rand_core::OsRng;
use serde::Serialize;

use crate::{
    args::DeployArgs,
    compose::ComposeFile,
    env_file,
    failure::{Failure, Outcome},
    kms::Kms,
    output::{Output, Palette, Tone, fields},
    ports::{self, PortSpec},
    progress::Progress,
    size,
    vms::{Timeline, Vmm, agent_url, short, urls, wait_for_boot},
};

/// The platform that the software TEE of a local stack plays.
const SIMULATED_TEE: &str = "dstack-tdx";

/// What `deploy` reports.
#[derive(Debug, Serialize)]
struct Deployed {
    name: String,
    id: String,
    app_id: AppId,
    compose_hash: ComposeHash,
    image: String,
    ports: Vec<PortMapping>,
    urls: Vec<String>,
    agent_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<Timeline>,
    #[serde(skip)]
    is_local: bool,
}

/// Deploys a compose file.
///
/// Errors: anything that stops it; what was not accepted by the VMM leaves nothing behind but packed volumes.
pub(crate) async fn deploy(args: &DeployArgs, output: Output) -> Outcome {
    let compose = ComposeFile::read(&args.compose)?;
    let vars = read_env(args)?;
    let name = app::name(args.name.as_deref(), &compose, &args.compose)?;
    let key_scheme = app::key_scheme(&args.key_scheme, &vars)?;
    remarks(&compose, &vars, output);
    let lookup = |name: &str| vars.iter().find(|var| var.key == name).map(|var| var.value.to_string());
    let wishes: Vec<PortSpec> = args.ports.iter().map(|text| text.parse()).collect::<Outcome<_>>()?;
    let specs = ports::plan(&compose.ports(&lookup)?, &wishes);
    let (memory, disk_size) = (size::parse_mib("--memory", &args.memory)?, size::parse_gib("--disk", &args.disk)?);

    let vmm = Vmm::connect(&args.vmm)?;
    let kms = find_kms(args, &vmm)?;
    let progress = Progress::new(output);
    let image = choose_image(&vmm, args.image.as_deref()).await?;
    refuse_taken_name(&vmm, &name).await?;
    // Before the long steps, so that a taken port costs nothing.
    let ports = if args.dry_run.is_some() { Vec::new() } else { ports::resolve(&specs)? };
    let volume = images::pack(args, &vmm, &compose, &progress)?;
    let app = app::build(&name, &compose, &vars, &kms.provider_id()?, key_scheme, volume.as_ref())?;
    let (compose_hash, app_id) = (app.compose_hash(), app.compose_hash().default_app_id());
    if let Some(path) = &args.dry_run {
        return dry_run(path, &app, output);
    }
    let subject = allow::Subject { name: &name, image: &image.name, app_id, compose_hash };
    let permission = allow::ask(&vmm, &subject, args.yes, output)?;
    let encrypted_env = seal(&kms, &app_id, &vars, &progress).await?;

    let configuration = VmConfiguration {
        name: name.clone(),
        image: image.name.clone(),
        compose_file: String::from_utf8_lossy(app.raw()).into_owned(),
        vcpu: args.vcpu,
        memory,
        disk_size,
        ports: ports.clone(),
        encrypted_env,
        app_id: Some(app_id.to_string()),
        kms_urls: args.kms_url.iter().cloned().collect(),
        simulated_tee: vmm.local.is_some().then(|| SIMULATED_TEE.to_owned()),
        stopped: true,
        ..VmConfiguration::default()
    };
    let id = create(&vmm, &configuration, permission, &progress).await?;
    let report = Deployed {
        id,
        name,
        app_id,
        compose_hash,
        image: image.name,
        ports,
        urls: Vec::new(),
        agent_url: None,
        timeline: None,
        is_local: vmm.local.is_some(),
    };
    finish(report, &vmm, args, &progress, output).await
}

/// Creates the VM, allows it, then starts it: what the VMM refuses needs no keys, and no guest asks for keys before they are allowed.
async fn create(vmm: &Vmm, configuration: &VmConfiguration, permission: allow::Permission, progress: &Progress) -> Outcome<String> {
    let step = progress.step("create VM");
    let operation = format!("creating {}", configuration.name);
    let created = vmm.api.create_vm(configuration).await;
    let id = created.map_err(|error| vmm.explain(error).during(operation.clone()))?;
    let started = match permission.grant() {
        Ok(granted) => match vmm.api.start_vm(&id).await {
            Ok(_) => Ok(()),
            Err(error) => Err(granted.take_back().err().unwrap_or_else(|| vmm.explain(error))),
        },
        Err(failure) => Err(failure),
    };
    if let Err(failure) = started {
        let _best_effort = vmm.api.remove_vm(&id).await;
        return Err(failure.during(operation));
    }
    step.done(short(&id.id));
    Ok(id.id)
}

async fn finish(mut report: Deployed, vmm: &Vmm, args: &DeployArgs, progress: &Progress, output: Output) -> Outcome {
    let vm = if args.no_wait {
        vmm.get(&report.id).await?
    } else {
        let patience = Duration::from_secs(args.timeout);
        let vm = wait_for_boot(vmm, &report.id, patience, progress).await?;
        let mut timeline = Timeline::of(&vm);
        if let Some(ms) = first_answer(&vm, patience, progress).await {
            timeline.push("first HTTP answer", ms);
        }
        report.timeline = Some(timeline);
        vm
    };
    report.urls = urls(&vm);
    report.agent_url = agent_url(&vm);
    output.result(&report, |palette| render(palette, &report))
}

/// Waits for the first published port that speaks HTTP; milliseconds since acceptance.
pub(crate) async fn first_answer(vm: &VmInfo, patience: Duration, progress: &Progress) -> Option<u64> {
    let urls = urls(vm);
    if urls.is_empty() {
        return None;
    }
    let mut step = progress.step("first HTTP answer");
    match probe::wait_for_http(&urls, patience, &mut step).await {
        Some((url, status, at_ms)) => {
            step.done(&format!("{url} {status}"));
            Some(at_ms.saturating_sub(vm.started_at_ms))
        }
        None => {
            step.skipped("no published port speaks HTTP");
            None
        }
    }
}

fn read_env(args: &DeployArgs) -> Outcome<Vec<EnvVar>> {
    match &args.env_file {
        Some(path) => env_file::read(path, &|name| std::env::var(name).ok()),
        None => Ok(Vec::new()),
    }
}

fn remarks(compose: &ComposeFile, vars: &[EnvVar], output: Output) {
    for remark in &compose.remarks {
        output.warn(remark);
    }
    for variable in &compose.variables {
        if !variable.has_default && !vars.iter().any(|var| var.key == variable.name) {
            output.warn(&format!("the compose file uses ${{{}}}, which has no value; pass it with -e FILE", variable.name));
        }
    }
}

fn find_kms(args: &DeployArgs, vmm: &Vmm) -> Outcome<Kms> {
    match (&args.kms_url, &args.kms_ca, &vmm.local) {
        (Some(url), Some(ca), _) => Kms::connect(url, ca),
        (None, None, Some(local)) => Kms::connect(&local.kms_url(), &local.kms_ca()),
        _ => {
            let cause = format!("the KMS of {} is not known here", vmm.url);
            Err(Failure::usage("deploy/no-kms", cause, "name it with --kms-url URL and --kms-ca FILE, which you got over a trusted way"))
        }
    }
}

async fn choose_image(vmm: &Vmm, wanted: Option<&str>) -> Outcome<ImageInfo> {
    let images = vmm.api.list_images(&Default::default()).await.map_err(|error| vmm.explain(error))?.images;
    pick_image(images, wanted, vmm.local.is_some())
}

/// The wanted image, or the newest; a local stack has no TEE, so it needs a development image.
fn pick_image(images: Vec<ImageInfo>, wanted: Option<&str>, needs_dev: bool) -> Outcome<ImageInfo> {
    let names: Vec<String> = images.iter().map(|image| image.name.clone()).collect();
    let known = if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
    if let Some(wanted) = wanted {
        let found = images.into_iter().find(|image| image.name == wanted);
        return found.ok_or_else(|| {
            Failure::new(
                "image/not-found",
                format!("the VMM has no OS image `{wanted}`; {known}"),
                "list the images with `dstack os list`, or make one with `dstack os build`",
            )
        });
    }
    let mut candidates: Vec<ImageInfo> = images.into_iter().filter(|image| image.is_dev == needs_dev).collect();
    let version = |image: &ImageInfo| image.version.split(['.', '-']).map(|part| part.parse::<u64>().unwrap_or(0)).collect::<Vec<_>>();
    candidates.sort_by_key(version);
    candidates.pop().ok_or_else(|| {
        let flavor = if needs_dev { "development" } else { "production" };
        let fix = format!("build one with `dstack os build --flavor {flavor}`, or name one with --image");
        Failure::new("deploy/no-image", format!("the VMM has no {flavor} image; {known}"), fix)
    })
}

async fn refuse_taken_name(vmm: &Vmm, name: &str) -> Outcome {
    match vmm.vms().await?.into_iter().find(|vm| vm.name == name) {
        None => Ok(()),
        Some(vm) => {
            let cause = format!("there is a VM called {name} ({}, {})", short(&vm.id), vm.status);
            Err(Failure::new("deploy/name-taken", cause, format!("choose another name with -n, or remove it with `dstack rm {name}`")))
        }
    }
}

async fn seal(kms: &Kms, app_id: &AppId, vars: &[EnvVar], progress: &Progress) -> Outcome<Vec<u8>> {
    if vars.is_empty() {
        return Ok(Vec::new());
    }
    let step = progress.step("seal environment");
    let key = kms.env_key(app_id).await.map_err(|failure| failure.during("sealing the environment"))?;
    let sealed = seal_env(&key, vars, &mut OsRng)
        .map_err(|error| Failure::new("env/not-sealed", error.to_string(), "shorten or rename the variables"))?;
    let names: Vec<&str> = vars.iter().map(|var| var.key.as_str()).collect();
    step.done(&format!("{} to a key the KMS signed", names.join(", ")));
    Ok(sealed)
}

fn dry_run(path: &Path, app: &AppCompose, output: Output) -> Outcome {
    if path == Path::new("-") {
        return std::io::stdout().lock().write_all(app.raw()).map_err(|error| Failure::io("writing", path, &error));
    }
    std::fs::write(path, app.raw()).map_err(|error| Failure::io("writing", path, &error))?;
    let (hash, app_id, file): (_, _, PathBuf) = (app.compose_hash(), app.compose_hash().default_app_id(), path.to_owned());
    let report = serde_json::json!({ "file": file, "compose_hash": hash, "app_id": app_id });
    output.result(&report, |palette| {
        fields(palette, &[("file", file.display().to_string()), ("compose hash", hash.to_string()), ("app", app_id.to_string())])
    })
}

fn render(palette: Palette, report: &Deployed) -> String {
    let verb = if report.timeline.is_some() { "runs" } else { "is starting" };
    let mut rows = vec![("VM", report.id.clone()), ("app", report.app_id.to_string()), ("compose hash", report.compose_hash.to_string())];
    rows.extend(report.urls.iter().map(|url| ("URL", palette.paint(Tone::Strong, url))));
    rows.extend(report.agent_url.iter().map(|url| ("agent", url.clone())));
    let head = palette.paint(Tone::Good, &format!("{} {verb}.", report.name));
    let timeline = report.timeline.as_ref().filter(|timeline| !timeline.phases.is_empty());
    let timeline = timeline.map_or(String::new(), |timeline| format!("\n{}\n", timeline.render(palette)));
    let permission = if report.is_local { " --allow-simulated" } else { "" };
    format!("{head}\n{}\n{timeline}\nNext: dstack verify {}{permission}", fields(palette, &rows), report.name)
}

#[cfg(test)]
mod tests;
