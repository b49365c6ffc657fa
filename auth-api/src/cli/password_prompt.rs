//! Password input of an operator: the first line of standard input.
//!
//! On a terminal the password is asked for twice and not shown. What the terminal shows again afterwards
//! is decided by a guard, so that it does in every case: after the input, an error, and the signals that
//! end the program (Ctrl-C among them).

use std::io::{BufRead, IsTerminal, Write};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use rustix::stdio::stdin;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Reads a password for `login` from standard input.
pub(super) async fn read(login: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        return read_line().context("reading the password from standard input");
    }
    let signals = EndingSignals::new()?;
    let hidden = HiddenInput::begin()?;
    let question = format!("Password of {login}: ");
    let input = async { Ok((ask(&question).await?, ask("The same again: ").await?)) };
    let input: Result<_> = tokio::select! {
        input = input => input,
        () = signals.received() => Err(anyhow!("interrupted: nothing was changed")),
    };
    drop(hidden);
    let (password, repetition) = input?;
    if password != repetition {
        bail!("the two passwords differ: nothing was changed");
    }
    Ok(password)
}

/// Writes a question to standard error, since standard output is for results, and returns the line that
/// answers it.
async fn ask(question: &str) -> Result<String> {
    let mut stderr = std::io::stderr();
    write!(stderr, "{question}").context("writing to standard error")?;
    stderr.flush().context("writing to standard error")?;
    let (sender, line) = oneshot::channel();
    // In a thread that the end of the runtime does not wait for: a signal ends the command while it reads.
    thread::Builder::new()
        .name("password_input".to_owned())
        .spawn(move || sender.send(read_line()))
        .context("starting a thread")?;
    let line = line.await.context("reading the password")?;
    line.context("reading the password from the terminal")
}

fn read_line() -> std::io::Result<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}

/// Terminal of standard input that does not show what is typed, until the value is dropped. Line breaks
/// are shown, so that the next output begins on a line of its own.
struct HiddenInput {
    previous: Termios,
}

impl HiddenInput {
    fn begin() -> Result<Self> {
        let previous = tcgetattr(stdin()).context("reading the settings of the terminal")?;
        let mut hidden = previous.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        hidden.local_modes.insert(LocalModes::ECHONL);
        // Discards input that was typed, and shown, before the echo was off.
        tcsetattr(stdin(), OptionalActions::Flush, &hidden)
            .context("changing the settings of the terminal")?;
        Ok(Self { previous })
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Flush, &self.previous);
    }
}

/// Signals that would end the process.
struct EndingSignals([Signal; 4]);

impl EndingSignals {
    fn new() -> Result<Self> {
        let receive = |kind| signal(kind).context("handling a signal");
        Ok(Self([
            receive(SignalKind::interrupt())?,
            receive(SignalKind::quit())?,
            receive(SignalKind::terminate())?,
            receive(SignalKind::hangup())?,
        ]))
    }

    async fn received(self) {
        let [mut interrupt, mut quit, mut terminate, mut hangup] = self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
