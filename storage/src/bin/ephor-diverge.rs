//! Makes the replica of a stopped master differ from the others, to test that the others detect it:
//! `ephor-diverge DATA_DIR KEY_SUFFIX FROM TO`. Never installed.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use proto_env::{CancellationToken, Env, TlsNetwork};
use storage::{DataKey, Limits, Store};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data_dir, suffix, from, to] = &arguments[..] else {
        return Err("usage: ephor-diverge DATA_DIR KEY_SUFFIX FROM TO".into());
    };
    let data_dir = Path::new(data_dir);
    let key = <[u8; 32]>::try_from(std::fs::read(data_dir.join("pki/data.key"))?)
        .map_err(|_| "pki/data.key does not have 32 bytes")?;
    let env = Env::production(Arc::new(TlsNetwork::joining()), CancellationToken::new());
    let store = Store::open(&data_dir.join("objects"), &DataKey::new(key), &env, Limits::default())?;
    let changed = store.diverge(suffix, from, to)?;
    store.sync()?;
    println!("{}", changed.ok_or("no object has that key and that text")?);
    Ok(())
}
