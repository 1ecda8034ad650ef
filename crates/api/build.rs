//! Generates message types, service traits and clients from `proto/`.

use std::fmt::Write as _;

use prost_build::{Method, Service, ServiceGenerator};

const PROTOS: [&str; 5] = ["kms", "vmm", "host_api", "guest_api", "guest_agent"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files: Vec<String> = PROTOS.iter().map(|name| format!("proto/{name}.proto")).collect();
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"])?;
    let mut config = prost_build::Config::new();
    config
        .type_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]")
        .service_generator(Box::new(PrpcGenerator));
    for file in &descriptors.file {
        for message in &file.message_type {
            for field in &message.field {
                let path = format!(".{}.{}.{}", file.package(), message.name(), field.name());
                annotate_field(&mut config, &path, field);
            }
        }
    }
    config.compile_fds(descriptors)?;
    Ok(())
}

/// First number of the fields that other implementations do not have.
const OWN_FIELDS: i32 = 100;

/// `bytes` are hex text in JSON. Optional scalars that are absent are left out, as is an empty `attestation`.
fn annotate_field(config: &mut prost_build::Config, path: &str, field: &prost_types::FieldDescriptorProto) {
    use prost_types::field_descriptor_proto::{Label, Type};
    if [".kms.", ".dstack_guest."].iter().any(|package| path.starts_with(package)) && field.number() >= OWN_FIELDS {
        config.field_attribute(path, "#[serde(skip_serializing_if = \"crate::json::is_default\")]");
    }
    let with = match (field.r#type(), field.label()) {
        (Type::Bytes, Label::Repeated) => "crate::json::hex_list",
        (Type::Bytes, _) => "crate::json::hex_bytes",
        _ => {
            if field.proto3_optional() {
                config.field_attribute(path, "#[serde(skip_serializing_if = \"Option::is_none\")]");
            }
            return;
        }
    };
    config.field_attribute(path, format!("#[serde(with = \"{with}\")]"));
    if path == ".dstack_guest.GetQuoteResponse.attestation" {
        config.field_attribute(path, "#[serde(skip_serializing_if = \"Vec::is_empty\")]");
    }
}

/// Writes one server trait, one dispatcher and one client per service.
struct PrpcGenerator;

impl ServiceGenerator for PrpcGenerator {
    fn generate(&mut self, service: Service, out: &mut String) {
        let name = &service.name;
        let methods = &service.methods;
        let emitted = emit(name, &service.proto_name, methods, out);
        assert!(emitted.is_ok(), "writing to a String cannot fail");
    }
}

fn emit(name: &str, proto_name: &str, methods: &[Method], out: &mut String) -> std::fmt::Result {
    writeln!(out, "/// Server side of `{proto_name}`. `Caller` is who the transport says is asking.")?;
    writeln!(out, "pub trait {name}Rpc: Send + Sync + 'static {{")?;
    writeln!(out, "    /// What the transport knows about the peer.\n    type Caller: Send + 'static;")?;
    for m in methods {
        writeln!(out, "    /// Handles `{}`.", m.proto_name)?;
        writeln!(
            out,
            "    fn {}(&self, caller: Self::Caller, request: {}) -> impl Future<Output = Result<{}, crate::RpcError>> + Send;",
            m.name, m.input_type, m.output_type
        )?;
    }
    writeln!(out, "}}\n")?;
    writeln!(out, "/// [`crate::Dispatch`] for any [`{name}Rpc`].\npub struct {name}Server<S>(pub std::sync::Arc<S>);\n")?;
    writeln!(out, "impl<S: {name}Rpc> crate::Dispatch for {name}Server<S> {{")?;
    writeln!(out, "    type Caller = S::Caller;\n    const SERVICE: &'static str = \"{proto_name}\";")?;
    writeln!(
        out,
        "    async fn dispatch(&self, caller: S::Caller, method: &str, input: crate::Payload) -> Result<Vec<u8>, crate::RpcError> {{"
    )?;
    writeln!(out, "        match method {{")?;
    for m in methods {
        writeln!(
            out,
            "            \"{}\" => {{ let encoding = input.encoding; let request = input.decode()?; encoding.encode(&self.0.{}(caller, request).await?) }}",
            m.proto_name, m.name
        )?;
    }
    writeln!(out, "            other => Err(crate::RpcError::unknown_method(Self::SERVICE, other)),\n        }}\n    }}\n}}\n")?;
    writeln!(
        out,
        "/// Client of `{proto_name}` over any [`crate::Transport`].\n#[derive(Debug, Clone)]\npub struct {name}Client<T>(pub T);\n"
    )?;
    writeln!(out, "impl<T: crate::Transport> {name}Client<T> {{")?;
    for m in methods {
        writeln!(out, "    /// Calls `{}`.\n    ///\n    /// Errors: what the server answered, or the transport's.", m.proto_name)?;
        writeln!(out, "    pub async fn {}(&self, request: &{}) -> Result<{}, crate::RpcError> {{", m.name, m.input_type, m.output_type)?;
        writeln!(
            out,
            "        let answer = self.0.call(\"{}\", crate::Encoding::Json.encode(request)?).await?;\n        crate::Payload::json(answer).decode()\n    }}",
            m.proto_name
        )?;
    }
    writeln!(out, "}}\n")
}
