#![allow(clippy::unwrap_used, reason = "tests")]

use dstack_manifest::KeyScheme;
use dstack_os_image::volume::{PackedImage, PackedVolume};

use super::*;

fn image(name: &str, version: &str, is_dev: bool) -> ImageInfo {
    ImageInfo { name: name.into(), version: version.into(), is_dev, ..ImageInfo::default() }
}

fn images() -> Vec<ImageInfo> {
    vec![
        image("dstack-0.10.0", "0.10.0", false),
        image("dstack-dev-0.9.0", "0.9.0", true),
        image("dstack-dev-0.10.0", "0.10.0", true),
        image("dstack-dev-0.2.0", "0.2.0", true),
    ]
}

fn compose() -> ComposeFile {
    ComposeFile::parse("services:\n  web:\n    image: nginx\n".to_owned(), Path::new("/x/shop/docker-compose.yaml")).unwrap()
}

#[test]
fn newest_image_of_the_right_flavour_is_taken() {
    assert_eq!(pick_image(images(), None, true).unwrap().name, "dstack-dev-0.10.0");
    assert_eq!(pick_image(images(), None, false).unwrap().name, "dstack-0.10.0");
    assert_eq!(pick_image(images(), Some("dstack-dev-0.2.0"), true).unwrap().name, "dstack-dev-0.2.0");
}

#[test]
fn unknown_image_is_refused_with_those_there_are() {
    let failure = pick_image(images(), Some("dstack-9"), true).unwrap_err();
    insta::assert_snapshot!(failure.report.for_program("dstack").to_string(), @r"
    dstack: error: the VMM has no OS image `dstack-9`; it has dstack-0.10.0, dstack-dev-0.9.0, dstack-dev-0.10.0, dstack-dev-0.2.0 [image/not-found]
      fix:   list the images with `dstack os list`, or make one with `dstack os build`
    ");

    let none = pick_image(Vec::new(), None, true).unwrap_err();
    insta::assert_snapshot!(none.report.for_program("dstack").to_string(), @r"
    dstack: error: the VMM has no development image; it has none [deploy/no-image]
      fix:   build one with `dstack os build --flavor development`, or name one with --image
    ");
}

#[test]
fn name_comes_from_option_file_or_folder() {
    let path = Path::new("/x/shop/docker-compose.yaml");
    let named = ComposeFile { name: Some("mall".into()), ..compose() };

    assert_eq!(app::name(Some("kiosk"), &named, path).unwrap(), "kiosk");
    assert_eq!(app::name(None, &named, path).unwrap(), "mall");
    assert_eq!(app::name(None, &compose(), path).unwrap(), "shop");
    for bad in ["", "-x", "a b", "ä", "x/y"] {
        assert_eq!(app::name(Some(bad), &named, path).unwrap_err().report.code, "deploy/bad-name");
    }
}

#[test]
fn document_is_the_measured_form_of_what_the_user_brought() {
    let vars = [EnvVar::new("B", "secret"), EnvVar::new("A", "secret")];
    let packed_image = PackedImage {
        reference: "nginx:latest".into(),
        digest: "sha256:00".into(),
        manifest_bytes: 1,
        media_type: String::new(),
        config: String::new(),
        layers: Vec::new(),
    };
    let root = "11".repeat(32).parse().unwrap();
    let volume = PackedVolume { path: "/v".into(), verity_root: root, data_bytes: 4096, images: vec![packed_image] };

    let app = app::build("shop", &compose(), &vars, "3059", KeyScheme::Compatible, Some(&volume)).unwrap();

    let text = String::from_utf8(app.raw().to_vec()).unwrap();
    assert!(!text.contains("secret"));
    insta::assert_snapshot!(text, @r#"
    {
      "manifest_version": 2,
      "name": "shop",
      "runner": "docker-compose",
      "docker_compose_file": "services:\n  web:\n    image: nginx\n",
      "key_provider": "kms",
      "key_provider_id": "3059",
      "public_logs": false,
      "public_sysinfo": false,
      "public_tcbinfo": true,
      "allowed_envs": [
        "A",
        "B"
      ],
      "no_instance_id": false,
      "secure_time": false,
      "storage_fs": "ext4",
      "verity_volumes": [
        {
          "source": "1111111111111111111111111111111111111111111111111111111111111111.img",
          "verity_root": "1111111111111111111111111111111111111111111111111111111111111111",
          "target": "/run/dstack/volumes/0"
        }
      ],
      "preloaded_images": [
        {
          "reference": "nginx:latest",
          "digest": "sha256:00",
          "volume": 0
        }
      ]
    }
    "#);
}

#[test]
fn separated_keys_are_demanded_in_the_measured_document() {
    let build = |scheme| app::build("shop", &compose(), &[], "3059", scheme, None).unwrap();
    let separated = app::key_scheme("separated", &[]).unwrap();

    assert_eq!(build(separated).document().key_scheme(), KeyScheme::Separated);
    assert_ne!(build(separated).compose_hash(), build(KeyScheme::Compatible).compose_hash());
    let refused = app::key_scheme("separated", &[EnvVar::new("A", "secret")]).unwrap_err();
    assert_eq!(refused.report.code, "deploy/separated-environment");
    assert_eq!(app::key_scheme("compatible", &[EnvVar::new("A", "secret")]).unwrap(), KeyScheme::Compatible);
}

#[test]
fn same_input_gives_the_same_app_id() {
    let build = || app::build("shop", &compose(), &[], "3059", KeyScheme::Compatible, None).unwrap().compose_hash().default_app_id();

    assert_eq!(build(), build());
}
