//! Graphs without a frontend, larger than people write them.

use client::{BuildRequest, Client};
use llb::{
    build::{Copy, Exec, FileAction, Graph, MarshalOptions, Meta, Mkfile, Output},
    pb,
};

use crate::workloads::{Scale, Times, send};

/// Folders of one `llb-wide` join.
const JOIN: usize = 100;

/// Sends a graph whose result is `output`.
pub async fn solve(
    client: &Client,
    graph: &Graph,
    output: Output,
) -> anyhow::Result<std::time::Duration> {
    let mut request = BuildRequest::new("");
    request.definition = Some(definition(graph, output)?);
    send(client, request).await
}

/// The graph as it is sent.
pub fn definition(graph: &Graph, output: Output) -> anyhow::Result<pb::Definition> {
    Ok(graph.marshal(Some(output), &MarshalOptions::default())?)
}

/// A small file that no other run makes.
pub fn file(nonce: &str, path: String) -> Vec<FileAction> {
    let data = nonce.as_bytes().to_vec();
    vec![FileAction::Mkfile(Mkfile { path, mode: 0o644, data, ..Mkfile::default() })]
}

/// One file after the other, each beside a copy of the one before: no tree is deeper than a mount
/// may be.
pub async fn deep(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let nonce = base::id::random_id();
    let mut graph = Graph::new();
    let mut last = graph.file(None, file(&nonce, "/new".into()), Meta::default());
    for number in 1..scale.vertices {
        let mut actions = file(&format!("{nonce} {number}"), "/new".into());
        actions.push(FileAction::Copy(Copy {
            from: Some(last).into(),
            src: "/new".into(),
            dest: "/old".into(),
            ..Copy::default()
        }));
        last = graph.file(None, actions, Meta::default());
    }
    let first = solve(client, &graph, last).await?;
    let again = solve(client, &graph, last).await?;
    Ok(vec![("llb-deep: chain of file ops", first.into()), ("llb-deep: cached", again.into())])
}

/// Files side by side, joined in two rounds: one merge of all is more layers than a mount takes.
pub async fn wide(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let nonce = base::id::random_id();
    let mut graph = Graph::new();
    let mut joins = Vec::new();
    let mut number = 0;
    while number < scale.vertices {
        let mut copies = Vec::new();
        let end = (number + JOIN).min(scale.vertices);
        while number < end {
            let made = file(&format!("{nonce} {number}"), format!("/f{number}"));
            let made = graph.file(None, made, Meta::default());
            copies.push(FileAction::Copy(Copy {
                from: Some(made).into(),
                src: format!("/f{number}"),
                dest: "/".into(),
                ..Copy::default()
            }));
            number += 1;
        }
        joins.push(Some(graph.file(None, copies, Meta::default())));
    }
    let joined = graph.merge(joins, Meta::default()).expect("there are vertices");
    let first = solve(client, &graph, joined).await?;
    let again = solve(client, &graph, joined).await?;
    Ok(vec![("llb-wide: files side by side", first.into()), ("llb-wide: cached", again.into())])
}

/// Many layers laid over each other, then something done on them.
pub async fn merge(client: &Client, _scale: &Scale) -> anyhow::Result<Times> {
    let nonce = base::id::random_id();
    let mut graph = Graph::new();
    let layers: Vec<_> = (0..100)
        .map(|number| {
            let text = format!("{nonce} {number}");
            Some(graph.file(None, file(&text, format!("/f{number}")), Meta::default()))
        })
        .collect();
    // The layers are there before; what is measured is the merge and the step.
    for layer in layers.iter().flatten() {
        solve(client, &graph, *layer).await?;
    }
    let merged = graph.merge(layers, Meta::default());
    let last = graph.file(merged, file(&nonce, "/last".into()), Meta::default());
    let took = solve(client, &graph, last).await?;
    Ok(vec![("merge: 100 layers, then a step", took.into())])
}

/// A root file system made of the base's last output, for steps.
pub fn step(graph: &mut Graph, root: Output, command: &str) -> Output {
    let mut exec = Exec::shell(Some(root), command);
    exec.env = vec![("PATH".into(), "/bin".into())];
    graph.exec(exec, Meta::default()).root
}
