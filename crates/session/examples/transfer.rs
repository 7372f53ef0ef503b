//! Measures a transfer between two folders through a session: `transfer FROM TO [times]`.

use std::{fs::File, path::PathBuf, time::Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use session::{
    SessionRequest, Sessions, SyncRequest,
    client::{SessionServer, SyncedDir, SyncedDirs},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let from = PathBuf::from(arguments.next().ok_or("usage: transfer FROM TO [times]")?);
    let to = PathBuf::from(arguments.next().ok_or("usage: transfer FROM TO [times]")?);
    let times: usize = arguments.next().map_or(Ok(2), |times| times.parse())?;

    let mut server = SessionServer::new("");
    let mut dirs = SyncedDirs::new();
    dirs.insert("context", SyncedDir::new(from));
    server.add_dirs(dirs);
    let sessions = Sessions::new();
    let request = SessionRequest::from_metadata(&server.metadata()?)?;
    let id = request.id.clone();
    let (to_client, from_daemon) = mpsc::channel::<Bytes>(32);
    let (to_daemon, from_client) = mpsc::channel::<Bytes>(32);
    let stop = CancellationToken::new();
    let incoming = ReceiverStream::new(from_client).map(Ok);
    tokio::spawn(sessions.serve(request, incoming, to_client).await);
    let incoming = ReceiverStream::new(from_daemon).map(Ok);
    tokio::spawn(server.serve(incoming, to_daemon, stop.clone()));
    let session = sessions.get(&id).await?;
    for _ in 0..times {
        let begun = Instant::now();
        let request = SyncRequest { name: "context".into(), ..SyncRequest::default() };
        let received = session.sync_dir(request, File::open(&to)?.into()).await?;
        println!("{:?} {received:?}", begun.elapsed());
    }
    stop.cancel();
    Ok(())
}
