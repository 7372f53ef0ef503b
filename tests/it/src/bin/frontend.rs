//! A frontend of a language of its own, to be run as an image by a `# syntax=` line.
//!
//! ```text
//! file PATH TEXT      a file
//! opt PATH OPTION     a file with the value of an option
//! tree PATH           all of the client's folder
//! ```
//!
//! It speaks the bridge protocol over its standard streams, as every frontend image does.

use std::{collections::BTreeMap, error::Error};

use hyper_util::rt::TokioIo;
use llb::{
    build::{Copy, FileAction, Graph, LocalOptions, MarshalOptions, Meta, Mkfile, Output, Source},
    pb,
};
use proto::frontend::{
    ReadFileRequest, Ref, Result as BuildResult, ReturnRequest, SolveRequest,
    llb_bridge_client::LlbBridgeClient, result,
};
use tonic::transport::{Channel, Endpoint};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if let Err(error) = run().await {
        eprintln!("frontend: {error}");
        std::process::exit(1);
    }
    // The thread that reads the standard input would be waited for.
    std::process::exit(0);
}

async fn run() -> Result<(), Box<dyn Error>> {
    let streams = Some(tokio::io::join(tokio::io::stdin(), tokio::io::stdout()));
    let streams = std::sync::Mutex::new(streams);
    let connector = tower::service_fn(move |_| {
        let streams = streams.lock().expect("nobody panics with the streams").take();
        let missing = || std::io::Error::other("the daemon has hung up");
        std::future::ready(streams.map(TokioIo::new).ok_or_else(missing))
    });
    let channel = Endpoint::from_static("http://bridge").connect_with_connector(connector).await?;
    let mut bridge = LlbBridgeClient::new(channel);
    let answer = build(&mut bridge, &options()).await?;
    bridge.r#return(ReturnRequest { result: Some(answer), error: None }).await?;
    Ok(())
}

/// Options of the build, each a variable `BUILDKIT_FRONTEND_OPT_<number>`.
fn options() -> BTreeMap<String, String> {
    std::env::vars()
        .filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"))
        .filter_map(|(_, pair)| Some(pair.split_once('=')?).map(|(k, v)| (k.into(), v.into())))
        .collect()
}

async fn build(
    bridge: &mut LlbBridgeClient<Channel>,
    options: &BTreeMap<String, String>,
) -> Result<BuildResult, Box<dyn Error>> {
    let name = options.get("filename").map_or("Dockerfile", String::as_str);
    let local = |name: &str, follow_paths: Vec<String>| {
        let session = std::env::var("BUILDKIT_SESSION_ID").unwrap_or_default();
        Source::local(name, &LocalOptions { session, follow_paths, ..LocalOptions::default() })
    };
    let mut graph = Graph::new();
    let file = graph.source(local("dockerfile", vec![name.to_owned()]), Meta::default());
    let read = solve(bridge, &graph, file).await?;
    let id = reference(&read).ok_or("there is no result to read the file from")?;
    let request = ReadFileRequest { r#ref: id, file_path: name.to_owned(), ..Default::default() };
    let text = bridge.read_file(request).await?.into_inner().data;
    let text = std::str::from_utf8(&text)?;
    let mut actions = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().unwrap_or_default().to_owned();
        let (verb, path, rest) = (word(), word(), word());
        let data = match verb.as_str() {
            "file" => rest,
            "opt" => options.get(&rest).cloned().unwrap_or_default(),
            "tree" => {
                let tree = graph.source(local("context", Vec::new()), Meta::default());
                actions.push(FileAction::Copy(Copy {
                    from: Some(tree).into(),
                    src: "/".to_owned(),
                    dest: path,
                    dir_copy_contents: true,
                    create_dest_path: true,
                    ..Copy::default()
                }));
                continue;
            }
            _ => return Err(format!("unknown word {verb:?}").into()),
        };
        let (mode, data) = (0o644, data.into_bytes());
        actions.push(FileAction::Mkfile(Mkfile { path, mode, data, ..Mkfile::default() }));
    }
    let made = graph.file(None, actions, Meta::named("made by an image"));
    solve(bridge, &graph, made).await
}

async fn solve(
    bridge: &mut LlbBridgeClient<Channel>,
    graph: &Graph,
    output: Output,
) -> Result<BuildResult, Box<dyn Error>> {
    let definition: pb::Definition = graph.marshal(Some(output), &MarshalOptions::default())?;
    let request = SolveRequest {
        definition: Some(definition),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..SolveRequest::default()
    };
    let answer = bridge.solve(request).await?.into_inner();
    Ok(answer.result.ok_or("the daemon gave no result")?)
}

fn reference(result: &BuildResult) -> Option<String> {
    match result.result.as_ref()? {
        result::Result::Ref(Ref { id, .. }) => Some(id.clone()),
        _ => None,
    }
}
