//! `ephor token`: creates, lists and deletes join tokens, which are Kubernetes bootstrap
//! tokens prefixed with the CA's hash. They are stored as Secrets of type
//! `bootstrap.kubernetes.io/token` in `kube-system`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use proto_wire::token::JoinToken;
use rand::Rng;

/// Type of the Secrets that hold tokens.
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Role in which the holder of a token may join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenRole {
    /// A master
    Master,
    /// A worker
    Worker,
}

impl TokenRole {
    /// Key of the Secret that grants this role.
    fn usage(self) -> &'static str {
        match self {
            Self::Master => master_node::tokens::USAGE_MASTER,
            Self::Worker => master_node::tokens::USAGE_WORKER,
        }
    }
}

/// Create, list and delete join tokens
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Path of the kubeconfig [default: $KUBECONFIG, or the one of this machine]
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Create a join token and print it
    Create {
        /// Role in which the holder of the token may join
        #[arg(long, value_enum, default_value_t = TokenRole::Worker)]
        role: TokenRole,
        /// Name of the only worker that may use the token, even if a Node of that name exists
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// Lifetime of the token, such as 30m or 24h
        #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// Purpose of the token, shown by `ephor token list`
        #[arg(long, default_value = "")]
        description: String,
    },
    /// List the tokens without their secrets
    List,
    /// Delete a token
    Delete {
        /// Id of the token (its six characters) or the whole token
        id: String,
    },
}

/// Runs `ephor token`.
pub async fn run(arguments: TokenArgs) -> Result<()> {
    let kubeconfig = arguments.kubeconfig.unwrap_or_else(crate::kubeconfig::default_path);
    let client = crate::kubeconfig::client(&kubeconfig, None).await?;
    match arguments.command {
        TokenCommand::Create { role, node, ttl, description } => {
            if node.is_some() && role == TokenRole::Master {
                bail!("--node requires --role worker");
            }
            let ca = crate::kubeconfig::ca_of(&kubeconfig)?;
            println!("{}", create(&client, &ca, role, node.as_deref(), ttl, &description).await?);
            Ok(())
        }
        TokenCommand::List => list(&client).await,
        TokenCommand::Delete { id } => {
            let id = id.parse::<JoinToken>().map_or(id, |token| token.id);
            let secrets = secrets(&client);
            if secrets.get_opt(&format!("{NAME_PREFIX}{id}")).await?.is_none() {
                bail!("there is no token {id}; see `ephor token list`");
            }
            secrets.delete(&format!("{NAME_PREFIX}{id}"), &DeleteParams::default()).await?;
            println!("token {id} deleted");
            Ok(())
        }
    }
}

fn secrets(client: &Client) -> Api<Secret> {
    Api::namespaced(client.clone(), "kube-system")
}

/// Creates a token, for a worker of any name or only of the name `node`, stores it and returns it.
pub async fn create(
    client: &Client,
    ca_pem: &str,
    role: TokenRole,
    node: Option<&str>,
    ttl: Duration,
    description: &str,
) -> Result<JoinToken> {
    let token = JoinToken {
        ca_hash: master_node::tokens::ca_hash(ca_pem)?,
        id: random_text(6),
        secret: random_text(16),
    };
    let expiration = humantime::format_rfc3339_seconds(SystemTime::now() + ttl).to_string();
    let mut data: BTreeMap<String, String> = BTreeMap::from([
        ("token-id".into(), token.id.clone()),
        ("token-secret".into(), token.secret.clone()),
        ("expiration".into(), expiration),
        ("description".into(), description.into()),
        (role.usage().into(), "true".into()),
    ]);
    if let Some(node) = node {
        data.insert(master_node::tokens::NODE_NAME.into(), node.into());
    }
    let secret = Secret {
        metadata: ObjectMeta { name: Some(format!("{NAME_PREFIX}{}", token.id)), ..ObjectMeta::default() },
        type_: Some(SECRET_TYPE.into()),
        data: Some(data.into_iter().map(|(k, v)| (k, ByteString(v.into_bytes()))).collect()),
        ..Secret::default()
    };
    secrets(client).create(&PostParams::default(), &secret).await.context("storing the token")?;
    Ok(token)
}

fn random_text(length: usize) -> String {
    let mut random = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

async fn list(client: &Client) -> Result<()> {
    let parameters = ListParams::default().fields(&format!("type={SECRET_TYPE}"));
    println!("{:<8} {:<8} {:<22} DESCRIPTION", "ID", "ROLE", "EXPIRES");
    for secret in secrets(client).list(&parameters).await?.items {
        let data = secret.data.unwrap_or_default();
        let text =
            |key: &str| data.get(key).map(|v| String::from_utf8_lossy(&v.0).into_owned()).unwrap_or_default();
        let role = if data.contains_key(master_node::tokens::USAGE_MASTER) { "master" } else { "worker" };
        println!("{:<8} {role:<8} {:<22} {}", text("token-id"), text("expiration"), text("description"));
    }
    Ok(())
}
