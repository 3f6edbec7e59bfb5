//! The built program as a child process: started, signalled, killed, and heard. It outlives no test.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child as Process, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use trunkline::clock;

/// No fact of these tests takes longer on a busy machine.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(30);
/// How often a fact is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits for a fact, within bounds.
pub(crate) async fn eventually<T>(what: &str, within: Duration, mut fact: impl AsyncFnMut() -> Option<T>) -> T {
    let until = clock::now() + within;
    loop {
        if let Some(fact) = fact().await {
            return fact;
        }
        assert!(clock::now() < until, "not within {within:?}: {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A running program. What it prints goes into files, so that it never waits for a reader.
pub(crate) struct Child {
    process: Process,
    out: PathBuf,
    err: PathBuf,
}

impl Child {
    /// Starts `trunkline` with these arguments, in `folder`.
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Self {
        Self::start_with(folder, arguments, &[])
    }

    /// The same with variables of the environment.
    pub(crate) fn start_with(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        command.args(arguments).envs(variables.iter().copied());
        Self::spawn(folder, command)
    }

    /// Starts any command; the variables that steer the program are not inherited.
    pub(crate) fn spawn(folder: &Path, mut command: Command) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let (out, err) = (folder.join(format!("{number}.out")), folder.join(format!("{number}.err")));
        let file = |path: &Path| Stdio::from(File::create(path).unwrap());
        for name in ["RUST_LOG", "TRUNKLINE_TOKEN"] {
            command.env_remove(name);
        }
        // What a killed program leaves behind goes with the folder.
        command.env("TMPDIR", folder);
        command.current_dir(folder).stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        let process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { process, out, err }
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap()).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.err).unwrap()).into_owned()
    }

    /// Everything that it printed, for the message of a failed test.
    pub(crate) fn printed_output(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.stdout(), self.stderr())
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// `kill -9`, and the end of it.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// `TERM`, `INT`, …
    pub(crate) fn signal(&self, name: &str) {
        let id = self.process.id().to_string();
        let sent = Command::new("sh").args(["-c", "kill -\"$0\" \"$1\"", name, &id]).status().unwrap();
        assert!(sent.success(), "kill -{name} {id}");
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().unwrap()
    }

    /// Its exit code, once it has ended by itself.
    pub(crate) async fn wait_for_exit(&mut self, within: Duration) -> i32 {
        let until = clock::now() + within;
        loop {
            if let Some(status) = self.has_ended() {
                return status.code().unwrap_or_else(|| panic!("{status}\n{}", self.printed_output()));
            }
            assert!(clock::now() < until, "still running after {within:?}\n{}", self.printed_output());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits until it printed this, on either output.
    pub(crate) async fn wait_for_output(&mut self, words: &str) {
        let until = clock::now() + WAIT_MAX;
        while !self.printed_output().contains(words) {
            assert!(self.has_ended().is_none(), "ended without {words:?}\n{}", self.printed_output());
            assert!(clock::now() < until, "did not say {words:?}\n{}", self.printed_output());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}
