//! The containers of this guest, as the engine tells.

use std::{path::Path, time::Duration};

use dstack_api::{RpcError, guest_api::Container};
use serde::Deserialize;

use crate::boot::docker_engine::DockerEngine;

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_CONTAINERS: usize = 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct EngineContainer {
    id: String,
    names: Option<Vec<String>>,
    image: String,
    #[serde(rename = "ImageID")]
    image_id: String,
    created: i64,
    state: String,
    status: String,
}

/// All containers, also those that ended. Blocks.
pub(super) fn list(socket: &Path) -> Result<Vec<Container>, RpcError> {
    let failed = |cause: String| {
        RpcError::new("agent/container-engine", format!("asking the container engine: {cause}"), "try again; the engine may be starting")
    };
    let answer = DockerEngine::new(socket).get("/containers/json?all=1", PATIENCE).map_err(|error| failed(error.to_string()))?;
    if answer.status != 200 {
        return Err(failed(format!("HTTP {}", answer.status)));
    }
    parse(&answer.body).map_err(|error| failed(error.to_string()))
}

fn parse(body: &[u8]) -> Result<Vec<Container>, serde_json::Error> {
    let containers: Vec<EngineContainer> = serde_json::from_slice(body)?;
    let convert = |container: EngineContainer| Container {
        id: container.id,
        names: container.names.unwrap_or_default(),
        image: container.image,
        image_id: container.image_id,
        created: container.created,
        state: container.state,
        status: container.status,
    };
    Ok(containers.into_iter().take(MAX_CONTAINERS).map(convert).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    #[test]
    fn containers_of_the_engine_are_read() {
        let body = br#"[{"Id":"ab","Names":["/hello-1"],"Image":"hello","ImageID":"sha256:cd","Created":1700000000,"State":"running","Status":"Up 2 seconds","Ports":[]},{"Id":"x","Names":null}]"#;

        let found = parse(body).unwrap();

        assert_eq!(found.len(), 2);
        let first = found.first().unwrap();
        assert_eq!(
            (first.names.as_slice(), first.image_id.as_str(), first.created),
            (["/hello-1".to_owned()].as_slice(), "sha256:cd", 1_700_000_000)
        );
        assert!(parse(b"{}").is_err());
    }
}
