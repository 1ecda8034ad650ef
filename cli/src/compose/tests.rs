#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;

fn must_parse(text: &str) -> ComposeFile {
    ComposeFile::parse(text.to_owned(), Path::new("docker-compose.yaml")).unwrap()
}

fn failure(text: &str) -> String {
    let failure = ComposeFile::parse(text.to_owned(), Path::new("docker-compose.yaml")).unwrap_err();
    failure.report.for_program("dstack").to_string()
}

fn published(text: &str) -> Vec<String> {
    let lookup = |name: &str| (name == "PORT").then(|| "9000".to_owned());
    must_parse(text).ports(&lookup).unwrap().iter().map(|port| format!("{}/{}", port.published, port.protocol)).collect()
}

#[test]
fn reads_services_images_and_variables() {
    let file = must_parse(
        "name: shop\nservices:\n  web:\n    image: nginx:1.27\n    environment: [\"A=${A}\", \"B=${B:-x}\", \"C=$$C\"]\n  # ${NOT}\n  db:\n    image: postgres\n    command: echo $A\n",
    );

    assert_eq!(file.name.as_deref(), Some("shop"));
    assert_eq!(file.services.iter().map(|service| service.image.as_str()).collect::<Vec<_>>(), ["postgres", "nginx:1.27"]);
    assert_eq!(file.variables, [Variable { name: "A".into(), has_default: false }, Variable { name: "B".into(), has_default: true }]);
}

#[test]
fn text_is_kept_as_it_is() {
    let text = "# hi\nservices: {web: {image: nginx}}   \n\n";

    assert_eq!(must_parse(text).text, text);
}

#[test]
fn ports_in_every_spelling() {
    let text = "services:\n  web:\n    image: nginx\n    ports:\n      - \"8080:80\"\n      - \"0.0.0.0:8081:80/tcp\"\n      - \"53:53/udp\"\n      - \"7000-7002:7000-7002\"\n      - \"${PORT:-1}:80\"\n      - \"127.0.0.1:5000:5000\"\n      - 80\n      - \"81\"\n      - {target: 80, published: 8443}\n      - {target: 80, published: \"8444\", protocol: udp, host_ip: 0.0.0.0}\n      - \"8080:81\"\n";

    assert_eq!(published(text), ["8080/tcp", "8081/tcp", "53/udp", "7000/tcp", "7001/tcp", "7002/tcp", "9000/tcp", "8443/tcp", "8444/udp"]);
}

#[test]
fn merge_keys_are_applied() {
    let text = "x-base: &base\n  image: nginx\n  ports: [\"8080:80\"]\nservices:\n  web:\n    <<: *base\n";

    assert_eq!(published(text), ["8080/tcp"]);
}

#[test]
fn remarks_on_what_stays_behind() {
    let file = must_parse(
        "services:\n  web:\n    image: nginx\n    env_file: .env\n    volumes: [\"./html:/usr/share/nginx/html\", \"data:/data\"]\nsecrets:\n  key: {file: ./key}\n",
    );

    insta::assert_snapshot!(file.remarks.join("\n"), @r"
    service `web` reads an env_file, which the VM does not have; pass it with -e and use ${NAME} in the compose file
    service `web` mounts ./html of this machine, which is empty in the VM
    secret `key` is a file of this machine, which the VM does not have; use an environment variable
    ");
}

#[test]
fn broken_yaml_is_shown_with_its_place() {
    insta::assert_snapshot!(failure("services:\n  web:\n    image: nginx\n   ports: [\n"), @r"
    dstack: error: reading the compose file [compose/syntax]
      cause: docker-compose.yaml:4:4: did not find expected key
             4 |    ports: [
               |    ^
      fix:   correct line 4 of docker-compose.yaml
    ");
}

#[test]
fn wrong_type_is_shown_with_its_place() {
    insta::assert_snapshot!(failure("services:\n  web:\n    image: [nginx]\n"), @r"
    dstack: error: reading the compose file [compose/syntax]
      cause: docker-compose.yaml:3:12: services.web.image: invalid type: sequence, expected a string
             3 |     image: [nginx]
               |            ^
      fix:   correct line 3 of docker-compose.yaml
    ");
}

#[test]
fn build_sections_are_refused_with_a_way_out() {
    insta::assert_snapshot!(failure("services:\n  web:\n    build: .\n"), @r"
    dstack: error: docker-compose.yaml:3: service `web` has a `build` section, and a VM runs ready images only [compose/unsupported]
      fix:   build and push the image, then write `image: <registry>/web@sha256:…` instead, or export it as an OCI archive and add --image-archive
    ");
}

#[test]
fn file_without_services_is_refused() {
    insta::assert_snapshot!(failure("version: '3'\n"), @r"
    dstack: error: docker-compose.yaml defines no services [compose/no-services]
      fix:   add a `services:` section with at least one service
    ");
}

#[test]
fn service_without_image_is_refused() {
    insta::assert_snapshot!(failure("services:\n  web: {}\n"), @r"
    dstack: error: docker-compose.yaml:2: service `web` has no image [compose/unsupported]
      fix:   add an `image:` line
    ");
}

#[test]
fn port_that_is_none_is_refused() {
    let file = must_parse("services:\n  web:\n    image: nginx\n    ports: [\"http:80\"]\n");

    insta::assert_snapshot!(file.ports(&|_| None).unwrap_err().report.for_program("dstack").to_string(), @r#"
    dstack: error: service `web` publishes `http:80`, which is not a port [compose/bad-port]
      fix:   write it as "HOST:CONTAINER", such as "8080:80"
    "#);
}
