//! Every call-back but file transfers.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use base::Digest;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
    GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
    VerifyTokenAuthorityResponse,
    auth_server::{Auth, AuthServer},
};
use session::{
    AgentSocket, AgentSocketOptions, Credentials, FetchToken, OutputEnd, SessionError, Sessions,
    WriteOutcome,
    client::{
        Agents, ContentStores, LayoutStore, OutputFile, Outputs, Secrets, SessionServer, Target,
        Uploads,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixListener, UnixStream},
};
use tonic::{Request, Response, Status};

use crate::{connect, soon};

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_wait_and_name_what_is_missing() {
    let pair = connect(SessionServer::new("key")).await;
    let id = pair.session.id().to_owned();
    assert_eq!(pair.session.shared_key(), "key");
    assert_eq!(pair.sessions.get(&format!("prefix:{id}")).await.unwrap().id(), id);
    assert!(pair.session.supports("/GRPC.health.v1.Health/check"));
    assert!(!pair.session.supports("/moby.filesync.v1.FileSync/DiffCopy"));

    let empty = Sessions::new();
    let missing = soon(empty.get("nobody")).await.err().unwrap();
    assert_eq!(missing.to_string(), "no active session for nobody: context deadline exceeded");
    let nothing = empty.group(Vec::<String>::new());
    let error = nothing.any(async |_| Ok::<(), SessionError>(())).await.unwrap_err();
    assert_eq!(error.to_string(), "no active sessions");
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_grows_and_takes_the_first_success() {
    let mut server = SessionServer::new("");
    let mut secrets = Secrets::new();
    secrets.value("token", "s3cr3t");
    server.add_secrets(secrets);
    let pair = connect(server).await;
    let ids = Arc::new(Mutex::new(Vec::<String>::new()));
    let group = {
        let ids = ids.clone();
        pair.sessions.growing_group(Arc::new(move || ids.lock().unwrap().clone()))
    };
    assert!(matches!(group.secret("token").await, Err(SessionError::NoSessions)));
    ids.lock().unwrap().push(pair.session.id().to_owned());
    assert_eq!(group.secret("token").await.unwrap().unwrap(), "s3cr3t");
    assert_eq!(group.secret("other").await.unwrap(), None);
    let tries = Arc::new(Mutex::new(0));
    ids.lock().unwrap().push(pair.session.id().to_owned());
    let found = group
        .any(async |session| {
            *tries.lock().unwrap() += 1;
            match *tries.lock().unwrap() {
                1 => Err(SessionError::NoLocalSources),
                _ => Ok(session.id().to_owned()),
            }
        })
        .await;
    assert_eq!(found.unwrap(), pair.session.id());
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_fail_when_the_session_ends() {
    struct Stuck;
    #[tonic::async_trait]
    impl proto::moby::buildkit::secrets::v1::secrets_server::Secrets for Stuck {
        async fn get_secret(
            &self,
            _: Request<proto::moby::buildkit::secrets::v1::GetSecretRequest>,
        ) -> Result<Response<proto::moby::buildkit::secrets::v1::GetSecretResponse>, Status>
        {
            std::future::pending().await
        }
    }
    let mut server = SessionServer::new("");
    let service = proto::moby::buildkit::secrets::v1::secrets_server::SecretsServer::new(Stuck);
    server.add(service, &["GetSecret"]);
    let pair = connect(server).await;
    let session = pair.session.clone();
    let call = tokio::spawn(async move { session.secret("x").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    pair.stop.cancel();
    let error = soon(call).await.unwrap().unwrap_err();
    assert!(matches!(error, SessionError::Ended { .. }), "{error}");
    assert!(error.is_session_lost());
    let error = soon(pair.session.secret("x")).await.unwrap_err();
    assert!(matches!(error, SessionError::Ended { .. }), "{error}");
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_services_are_answers() {
    let pair = connect(SessionServer::new("")).await;
    let session = &pair.session;
    assert_eq!(session.secret("x").await.unwrap(), None);
    assert_eq!(session.credentials("h").await.unwrap(), Credentials::default());
    assert_eq!(session.token_authority("h", &[0; 32]).await.unwrap(), None);
    assert!(session.find_exporters(BTreeMap::new(), Vec::new()).await.unwrap().is_empty());
    session.finalize_export(BTreeMap::new()).await.unwrap();
    let error = session.check_agent("k").await.unwrap_err();
    assert_eq!(error.to_string(), r#"no SSH key "k" forwarded from the client"#);
    let error = session.send_file(0, &BTreeMap::new()).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "method /moby.filesync.v1.FileSend/DiffCopy not supported by the client"
    );
    pair.close().await;
}

#[derive(Clone)]
struct Keeper;

#[tonic::async_trait]
impl Auth for Keeper {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let username = format!("user of {}", request.into_inner().host);
        Ok(Response::new(CredentialsResponse { username, secret: "pass".into() }))
    }

    async fn fetch_token(
        &self,
        request: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        let token = request.into_inner().scopes.join("+");
        Ok(Response::new(FetchTokenResponse { token, expires_in: 60, issued_at: 7 }))
    }

    async fn get_token_authority(
        &self,
        request: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        let public_key = match request.into_inner().host.as_str() {
            "off" => return Err(Status::unavailable("client tokens are off")),
            "short" => Bytes::from_static(b"short"),
            _ => vec![7u8; 32].into(),
        };
        Ok(Response::new(GetTokenAuthorityResponse { public_key }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        let signed = [&[1u8; 64][..], &request.into_inner().payload].concat().into();
        Ok(Response::new(VerifyTokenAuthorityResponse { signed }))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_and_tokens() {
    let mut server = SessionServer::new("");
    let methods = ["Credentials", "FetchToken", "GetTokenAuthority", "VerifyTokenAuthority"];
    server.add(AuthServer::new(Keeper), &methods);
    let pair = connect(server).await;
    let session = &pair.session;
    let credentials = session.credentials("h").await.unwrap();
    assert_eq!(credentials.username, "user of h");
    assert_eq!(session.token_authority("h", &[0; 32]).await.unwrap(), Some([7; 32]));
    assert_eq!(session.token_authority("off", &[0; 32]).await.unwrap(), None);
    let error = session.token_authority("short", &[0; 32]).await.unwrap_err();
    assert!(error.to_string().contains("5 bytes instead of 32"), "{error}");
    let signed = session.verify_token_authority("h", &[0; 32], &[9; 32]).await.unwrap();
    assert_eq!(signed[64..], [9; 32]);
    let scopes = vec!["a".to_owned(), "b".to_owned()];
    let token = session.fetch_token(FetchToken { scopes, ..FetchToken::default() }).await.unwrap();
    assert_eq!((token.token.as_str(), token.expires_in, token.issued_at), ("a+b", 60, 7));
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_socket_reaches_the_clients_socket() {
    let folder = tempfile::tempdir().unwrap();
    let agent_path = folder.path().join("agent");
    let agent = UnixListener::bind(&agent_path).unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = agent.accept().await {
            let mut asked = Vec::new();
            socket.read_to_end(&mut asked).await.unwrap();
            asked.reverse();
            socket.write_all(&asked).await.unwrap();
        }
    });
    let mut server = SessionServer::new("");
    let mut agents = Agents::new();
    agents.socket("", &agent_path);
    server.add_agents(agents);
    let pair = connect(server).await;
    pair.session.check_agent("").await.unwrap();
    pair.session.check_agent("default").await.unwrap();
    let error = pair.session.check_agent("other").await.unwrap_err();
    assert_eq!(error.to_string(), "unset ssh forward key other");

    let run = tempfile::tempdir().unwrap();
    let options = AgentSocketOptions { uid: 0, gid: 0, mode: 0o600 };
    let options = AgentSocketOptions {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        ..options
    };
    let socket = AgentSocket::listen(run.path(), pair.session.clone(), "", options).unwrap();
    for text in ["hello", &"long ".repeat(50_000)] {
        let mut stream = UnixStream::connect(socket.path()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        assert_eq!(answer, text.chars().rev().collect::<String>());
    }
    let path = socket.path().to_owned();
    drop(socket);
    assert!(!path.exists());
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_read_once() {
    let uploads = Uploads::new();
    let address = uploads.offer(io::Cursor::new(vec![b'x'; 1_000_000]));
    let path = address.strip_prefix("http://buildkit-session").unwrap().to_owned();
    let mut server = SessionServer::new("");
    server.add_uploads(uploads);
    let pair = connect(server).await;
    let data: Vec<Bytes> = pair.session.upload(&path).await.unwrap().try_collect().await.unwrap();
    assert_eq!(data.iter().map(Bytes::len).sum::<usize>(), 1_000_000);
    assert!(pair.session.upload(&path).await.is_err());
    pair.close().await;
}

fn blob_stream(data: &[u8]) -> impl futures_util::Stream<Item = io::Result<Bytes>> + use<> {
    let chunks: Vec<_> =
        data.chunks(700_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    futures_util::stream::iter(chunks)
}

#[tokio::test(flavor = "multi_thread")]
async fn content_is_written_verified_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = SessionServer::new("");
    server.add_content(ContentStores::new([
        ("export".to_owned(), LayoutStore::writable(folder.path())),
        ("oci:base".to_owned(), LayoutStore::read_only(folder.path())),
    ]));
    let pair = connect(server).await;
    let store = pair.session.content("export");
    let data: Vec<u8> = (0..3_000_000u32).map(|index| index as u8).collect();
    let digest = Digest::of(&data);
    let size = data.len() as u64;
    assert_eq!(store.info(&digest).await.unwrap(), None);
    let write = || store.write(&digest, size, BTreeMap::new(), blob_stream(&data));
    assert_eq!(soon(write()).await.unwrap(), WriteOutcome::Written);
    assert_eq!(soon(write()).await.unwrap(), WriteOutcome::AlreadyExists);
    assert_eq!(store.info(&digest).await.unwrap().unwrap().size, size);

    let wrong = Digest::of("other");
    let error = store.write(&wrong, size, BTreeMap::new(), blob_stream(&data)).await.unwrap_err();
    assert!(error.to_string().contains("unexpected commit digest"), "{error}");
    let error =
        store.write(&wrong, 5, BTreeMap::new(), blob_stream(b"12345678")).await.unwrap_err();
    assert!(error.to_string().contains("unexpected commit size"), "{error}");

    let base = pair.session.content("oci:base");
    assert_eq!(base.read_all(&digest, 4 << 20).await.unwrap(), data);
    assert!(base.read_all(&digest, 1 << 20).await.is_err());
    let part: Vec<Bytes> =
        base.read(&digest, 10, Some(20)).await.unwrap().try_collect().await.unwrap();
    assert_eq!(part.concat(), data[10..30]);
    let past = base.read(&digest, size + 1, None).await.err().unwrap();
    assert_eq!(past.code(), Some(tonic::Code::OutOfRange));
    let error = base.write(&wrong, 0, BTreeMap::new(), blob_stream(b"")).await.unwrap_err();
    assert_eq!(error.code(), Some(tonic::Code::PermissionDenied));
    let error = pair.session.content("none").info(&digest).await.unwrap_err();
    assert_eq!(error.to_string(), "unknown store none");

    // A read in progress ends with the session.
    let mut reading = base.read(&digest, 0, None).await.unwrap();
    reading.next().await.unwrap().unwrap();
    pair.stop.cancel();
    pair.session.ended().await;
    let rest: Result<Vec<Bytes>, _> = soon(reading.try_collect()).await;
    if let Err(error) = rest {
        assert!(matches!(error, SessionError::Ended { .. }), "{error}");
    }
    pair.close().await;
}

#[derive(Default)]
struct Taken {
    data: Mutex<Vec<u8>>,
    closed: Mutex<bool>,
    told: Mutex<BTreeMap<String, String>>,
}

struct TakenFile(Arc<Taken>);

impl OutputFile for TakenFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.data.lock().unwrap().extend_from_slice(bytes);
        Ok(())
    }

    fn close(self: Box<Self>) -> io::Result<()> {
        *self.0.closed.lock().unwrap() = true;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn file_outputs_arrive_whole_or_not_at_all() {
    let taken = Arc::new(Taken::default());
    let mut server = SessionServer::new("");
    let file = {
        let taken = taken.clone();
        Target::File(Arc::new(move |told| {
            *taken.told.lock().unwrap() = told;
            taken.data.lock().unwrap().clear();
            *taken.closed.lock().unwrap() = false;
            Ok(Some(Box::new(TakenFile(taken.clone()))))
        }))
    };
    let known = Target::File(Arc::new(|_| Ok(None)));
    let broken = Target::File(Arc::new(|_| Err(io::Error::other("disk on fire"))));
    server.add_outputs(Outputs::new([(0, file), (1, known), (2, broken)]));
    let pair = connect(server).await;

    let told: BTreeMap<String, String> =
        [("containerimage.digest".to_owned(), "sha256:1".to_owned())].into();
    let mut writer = pair.session.send_file(0, &told).await.unwrap();
    writer.write_chunk(Bytes::from(vec![1u8; 7_000_000])).await.unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        io::Write::write_all(&mut writer, &[2u8; 1_000_000]).map(|()| writer)
    });
    let writer = writer.await.unwrap().unwrap();
    assert_eq!(soon(writer.finish()).await.unwrap(), OutputEnd::Written);
    assert_eq!(taken.data.lock().unwrap().len(), 8_000_000);
    assert!(*taken.closed.lock().unwrap());
    assert_eq!(*taken.told.lock().unwrap(), told);

    let mut writer = pair.session.send_file(1, &told).await.unwrap();
    writer.write_chunk(Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(soon(writer.finish()).await.unwrap(), OutputEnd::AlreadyExists);

    let writer = pair.session.send_file(2, &told).await.unwrap();
    let error = soon(writer.finish()).await.unwrap_err();
    assert_eq!(error.to_string(), "write output: disk on fire");
    let writer = pair.session.send_file(9, &told).await.unwrap();
    assert_eq!(soon(writer.finish()).await.unwrap_err().to_string(), "exporter 9 not found");

    // Given up half-way: the client must not take it for the whole.
    taken.data.lock().unwrap().clear();
    *taken.closed.lock().unwrap() = false;
    let mut writer = pair.session.send_file(0, &told).await.unwrap();
    writer.write_chunk(Bytes::from_static(b"half")).await.unwrap();
    while taken.data.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(writer);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!*taken.closed.lock().unwrap());
    pair.close().await;
}
