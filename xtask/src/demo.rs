//! The job that most people know: a node application becomes an image and runs.

/// Runs it.
pub fn run(_: &[String]) -> anyhow::Result<()> {
    anyhow::bail!("not here yet")
}
