//! A script that the server runs in one step.

use redis::{Cmd, cmd};

/// A Lua script, which the server caches by its digest after the first run. Begin it with `#!lua`: then a server that
/// cannot write rejects it before its first line, and not in the middle.
#[derive(Debug)]
pub struct LuaScript {
    source: &'static str,
    digest: String,
}

impl LuaScript {
    pub fn new(source: &'static str) -> Self {
        Self { source, digest: redis::Script::new(source).get_hash().to_owned() }
    }

    /// The call by digest. A server that does not have the script replies `NOSCRIPT`.
    pub fn by_name(&self, keys: &[&str], arguments: &[&[u8]]) -> Cmd {
        command("EVALSHA", &self.digest, keys, arguments)
    }

    /// The call with the source, which the server then caches.
    pub fn in_full(&self, keys: &[&str], arguments: &[&[u8]]) -> Cmd {
        command("EVAL", self.source, keys, arguments)
    }
}

fn command(name: &str, script: &str, keys: &[&str], arguments: &[&[u8]]) -> Cmd {
    let mut command = cmd(name);
    command.arg(script).arg(keys.len());
    keys.iter().for_each(|key| {
        command.arg(*key);
    });
    arguments.iter().for_each(|argument| {
        command.arg(*argument);
    });
    command
}
