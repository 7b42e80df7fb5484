//! What `bureau` does beside serving: building agents, and asking a running host.
//!
//! **Problem.** An operator, and a script, must be able to do all that the admin API does, see what came of it, and tell
//! success from failure without reading.
//!
//! **Mechanism.** One file for each group of commands. A command asks through [`client`], which turns whatever goes wrong into one
//! sentence, and prints through [`output`], as a table or as the JSON that the host sent. What is decided without I/O
//! (what is shown, what is asked next) is functions and types of its own, with their tests beside them.
//!
//! **Limits.** HTTP without TLS, as the host speaks it. A token comes from the environment and never from an argument, which
//! others on the machine could see.
//!
//! **Cost.** A connection for each command; for [`tail`] one for each run that it follows.

pub mod arguments;
mod client;
mod output;
mod build;
mod deploy;
mod follow;
mod inspect;
mod list;
mod new;
mod tail;

pub use self::output::ReaderLeft;

use self::arguments::Action;
use self::client::Client;
use self::output::Output;

/// Runs one of the commands that do not serve.
pub async fn run(action: Action) -> anyhow::Result<()> {
    let connect = Client::new;
    match action {
        Action::New { name, path, sdk, form } => {
            new::new(&name, path, sdk.as_deref(), &Output::new(form))
        }
        Action::Build { paths, form } => build::build(&paths, &Output::new(form)).await,
        Action::Inspect { file, agent, config, form } => {
            let agent = config.as_deref().zip(agent.as_ref());
            inspect::inspect(&file, agent, &Output::new(form))
        }
        Action::Deploy { name, file, if_current, form, remote } => {
            let client = connect(&remote)?;
            deploy::deploy(&client, &name, &file, if_current.as_ref(), &Output::new(form)).await
        }
        Action::Rollback { name, to, form, remote } => {
            deploy::rollback(&connect(&remote)?, &name, to.as_ref(), &Output::new(form)).await
        }
        Action::Remove { name, form, remote } => {
            deploy::remove(&connect(&remote)?, &name, &Output::new(form)).await
        }
        Action::Agents { form, remote } => {
            list::agents(&connect(&remote)?, &Output::new(form)).await
        }
        Action::Deployments { name, form, remote } => {
            list::deployments(&connect(&remote)?, &name, &Output::new(form)).await
        }
        Action::Instances { agent, form, remote } => {
            list::instances(&connect(&remote)?, agent.as_ref(), &Output::new(form)).await
        }
        Action::Runs { agent, instance, limit, form, remote } => {
            let (agent, instance) = (agent.as_ref(), instance.as_deref());
            list::runs(&connect(&remote)?, agent, instance, limit, &Output::new(form)).await
        }
        Action::Tail { agent, instance, run, form, remote } => {
            let client = connect(&remote)?;
            tail::tail(client, &agent, &instance, run, &Output::new(form)).await
        }
        Action::Cancel { run, form, remote } => {
            tail::cancel(&connect(&remote)?, run, &Output::new(form)).await
        }
        Action::Events { form, remote } => {
            tail::events(&connect(&remote)?, &Output::new(form)).await
        }
    }
}
