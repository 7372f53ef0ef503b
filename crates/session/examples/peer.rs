//! Talks to the other implementation: `peer daemon SOCKET OUT` is asked by a Go client,
//! `peer client SOCKET CONTEXT OUT` asks a real daemon.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use base::Digest;
use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream::BoxStream};
use proto::control::{
    control_client::ControlClient,
    control_server::{Control, ControlServer},
    *,
};
use session::{
    SendTree, Session, Sessions, SyncRequest,
    client::{ContentStores, LayoutStore, Outputs, SessionServer, SyncedDir, SyncedDirs, Target},
    fsutil::DirTree,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, transport::Server};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["daemon", socket, out] => daemon(socket, out.into()).await,
        ["client", socket, context, out] => client(socket, context.into(), out.into()).await,
        _ => Err("usage: peer daemon SOCKET OUT | peer client SOCKET CONTEXT OUT".into()),
    }
}

struct Daemon {
    sessions: Sessions,
    out: PathBuf,
}

async fn daemon(socket: &str, out: PathBuf) -> Result<(), Error> {
    _ = std::fs::remove_file(socket);
    let listener = tokio::net::UnixListener::bind(socket)?;
    let daemon = Daemon { sessions: Sessions::new(), out };
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    Server::builder().add_service(ControlServer::new(daemon)).serve_with_incoming(incoming).await?;
    Ok(())
}

impl Daemon {
    async fn try_all(&self, session: Session) -> Result<(), Error> {
        let copy = self.out.join("copy");
        std::fs::create_dir_all(&copy)?;
        for _ in 0..2 {
            let begun = Instant::now();
            let request = SyncRequest { name: "context".into(), ..SyncRequest::default() };
            let received = session.sync_dir(request, File::open(&copy)?.into()).await?;
            println!("sync {:?} {received:?}", begun.elapsed());
        }
        let wrong = SyncRequest { name: "né".into(), ..SyncRequest::default() };
        println!("wrong: {:?}", session.sync_dir(wrong, File::open(&copy)?.into()).await.err());

        let tree = Arc::new(DirTree::open(&copy)?);
        let begun = Instant::now();
        let send = SendTree { exporter: 0, tree, multi_platform: false, progress: None };
        session.send_tree(send).await?;
        println!("sent tree {:?}", begun.elapsed());

        let told: BTreeMap<String, String> =
            [("containerimage.digest".to_owned(), "sha256:x".to_owned())].into();
        let mut file = session.send_file(1, &told).await?;
        file.write_chunk(Bytes::from(vec![7u8; 10_000_000])).await?;
        println!("file: {:?}", file.finish().await);
        let mut file = session.send_file(2, &told).await?;
        file.write_chunk(Bytes::from(vec![7u8; 10_000_000])).await?;
        println!("existing file: {:?}", file.finish().await);
        println!("no target: {:?}", session.send_file(9, &told).await?.finish().await);

        println!("secret: {:?}", session.secret("s").await);
        println!("no secret: {:?}", session.secret("x").await);
        println!("agent: {:?}", session.check_agent("").await);
        if session.check_agent("").await.is_ok() {
            let (mut near, far) = tokio::io::duplex(4096);
            let forwarding = session.forward_agent("", far);
            let talk = async {
                // "List identities" of the agent protocol.
                near.write_all(&[0, 0, 0, 1, 11]).await?;
                let mut answer = [0; 5];
                near.read_exact(&mut answer).await?;
                drop(near);
                Ok::<_, std::io::Error>(answer)
            };
            println!("agent says: {:?}", tokio::join!(forwarding, talk));
        }
        println!("credentials: {:?}", session.credentials("h").await);
        println!("authority: {:?}", session.token_authority("h", &[1; 32]).await);

        let address = std::fs::read_to_string(self.out.join("upload"))?;
        let path = address.strip_prefix("http://buildkit-session").ok_or("upload address")?;
        let data: Vec<Bytes> = session.upload(path).await?.try_collect().await?;
        println!("upload: {} bytes", data.iter().map(Bytes::len).sum::<usize>());

        let store = session.content("export");
        let data = vec![3u8; 5_000_000];
        let digest = Digest::of(&data);
        for _ in 0..2 {
            let chunks = futures_util::stream::iter([Ok(Bytes::from(data.clone()))]);
            let size = data.len() as u64;
            println!("write: {:?}", store.write(&digest, size, BTreeMap::new(), chunks).await);
        }
        println!("info: {:?}", store.info(&digest).await);
        println!("absent: {:?}", store.info(&Digest::of("x")).await);
        println!("unknown store: {:?}", session.content("x").info(&digest).await);
        println!("read: {}", store.read_all(&digest, 6 << 20).await? == data);
        Ok(())
    }
}

#[tonic::async_trait]
impl Control for Daemon {
    type PruneStream = BoxStream<'static, Result<UsageRecord, Status>>;
    type StatusStream = BoxStream<'static, Result<StatusResponse, Status>>;
    type SessionStream = BoxStream<'static, Result<BytesMessage, Status>>;
    type ListenBuildHistoryStream = BoxStream<'static, Result<BuildHistoryEvent, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.sessions.serve_rpc(request).await
    }

    async fn solve(
        &self,
        request: Request<SolveRequest>,
    ) -> Result<Response<SolveResponse>, Status> {
        let session = self.sessions.get(&request.get_ref().session).await;
        let session = session.map_err(|error| Status::unknown(error.to_string()))?;
        match self.try_all(session).await {
            Ok(()) => Ok(Response::new(SolveResponse::default())),
            Err(error) => Err(Status::unknown(error.to_string())),
        }
    }

    async fn disk_usage(
        &self,
        _: Request<DiskUsageRequest>,
    ) -> Result<Response<DiskUsageResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn prune(&self, _: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn status(
        &self,
        _: Request<StatusRequest>,
    ) -> Result<Response<Self::StatusStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn list_workers(
        &self,
        _: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn listen_build_history(
        &self,
        _: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn update_build_history(
        &self,
        _: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// A graph that is the folder `context`, exported as a tree, a tar and an OCI layout.
async fn client(socket: &str, context: PathBuf, out: PathBuf) -> Result<(), Error> {
    use llb::pb;
    use prost::Message as _;
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move {
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(
                tokio::net::UnixStream::connect(path).await?,
            ))
        }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let mut control = ControlClient::new(endpoint.connect_with_connector(connector).await?);

    for (round, exporter, attrs) in [
        (0, "local", vec![]),
        (1, "local", vec![("mode", "delete")]),
        (2, "tar", vec![]),
        (3, "oci", vec![("tar", "false")]),
    ] {
        let mut server = SessionServer::new("peer");
        let mut dirs = SyncedDirs::new();
        dirs.insert("context", SyncedDir::new(&context));
        server.add_dirs(dirs);
        let target = match exporter {
            "local" => Target::Folder { path: out.join("tree"), delete: round == 1 },
            _ => tar_target(&out),
        };
        server.add_outputs(Outputs::new([(0, target)]));
        let layout = LayoutStore::writable(out.join("layout"));
        server.add_content(ContentStores::new([("export".to_owned(), layout)]));
        let id = server.id().to_owned();
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (control, stop) = (control.clone(), stop.clone());
            async move {
                let result = server.run(control, stop.clone()).await;
                println!("session over, asked for: {}", stop.is_cancelled());
                result
            }
        });

        let source = pb::Op {
            op: Some(pb::op::Op::Source(pb::SourceOp {
                identifier: "local://context".into(),
                attrs: [("local.unique".to_owned(), base::id::random_id())].into(),
            })),
            ..pb::Op::default()
        }
        .encode_to_vec();
        let last = pb::Op {
            inputs: vec![pb::Input { digest: Digest::of(&source).to_string(), index: 0 }],
            ..pb::Op::default()
        };
        let definition = pb::Definition {
            def: vec![source.into(), last.encode_to_vec().into()],
            ..Default::default()
        };
        let begun = Instant::now();
        let request = SolveRequest {
            r#ref: base::id::random_id(),
            definition: Some(definition),
            session: id,
            exporters: vec![Exporter {
                r#type: exporter.to_owned(),
                attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            }],
            ..SolveRequest::default()
        };
        match control.solve(request).await {
            Ok(answer) => {
                println!("{exporter} {attrs:?}: {:?} {:?}", begun.elapsed(), answer.into_inner());
            }
            Err(error) => println!("{exporter} {attrs:?}: failed: {}", error.message()),
        }
        let begun = Instant::now();
        stop.cancel();
        println!("closed after {:?}: {:?}", begun.elapsed(), running.await?);
    }
    Ok(())
}

fn tar_target(out: &Path) -> Target {
    let path = out.join("out.tar");
    Target::File(Arc::new(move |told| {
        println!("tar output {told:?}");
        Ok(Some(Box::new(File::create(&path)?)))
    }))
}
