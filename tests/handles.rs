//! Files, sockets and connections inside of messages: what arrives, what moves, and what is lost (nothing).

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "to fork among libtest's threads has to be vouched for")]

mod support;

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net as unix;
use std::{io, net};

use serde::Serialize;
use support::{run, run_each};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_multiprocess as mp;
use tokio_multiprocess::Handle;

/// What comes out of a message with this value in it.
async fn sent<T, U: serde::de::DeserializeOwned>(value: T) -> U
where
    T: Serialize,
{
    let (mut here, mut there) = mp::pipe().unwrap();
    here.send(&value).await.unwrap();
    drop(value);
    there.recv().await.unwrap()
}

fn content(mut file: File) -> String {
    file.rewind().unwrap();
    io::read_to_string(file).unwrap()
}

#[test]
fn stds_files_sockets_and_pipes_travel() {
    run(60, async {
        async fn travelled<T: mp::reduction::Transferable + 'static>(value: T) -> T {
            sent::<_, Handle<T>>(Handle::new(value)).await.into_inner().unwrap()
        }
        let file = tempfile::tempfile().unwrap();
        let copy = file.try_clone().unwrap();
        travelled(file).await.write_all(b"fi").unwrap();
        File::from(travelled(OwnedFd::from(copy.try_clone().unwrap())).await).write_all(b"le").unwrap();
        assert_eq!(content(copy), "file");

        let (reader, writer) = io::pipe().unwrap();
        let (reader, mut writer): (PipeReader, PipeWriter) =
            (travelled(reader).await, travelled(writer).await);
        writer.write_all(b"pipe").unwrap();
        drop(writer);
        assert_eq!(io::read_to_string(reader).unwrap(), "pipe");

        let (a, b) = unix::UnixStream::pair().unwrap();
        travelled(a).await.write_all(b"stream").unwrap();
        assert_eq!(io::read_to_string(travelled(b).await).unwrap(), "stream");

        let (a, b) = unix::UnixDatagram::pair().unwrap();
        travelled(a).await.send(b"datagram").unwrap();
        let mut buf = [0; 16];
        assert_eq!(travelled(b).await.recv(&mut buf).unwrap(), 8);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = travelled(unix::UnixListener::bind(&path).unwrap()).await;
        unix::UnixStream::connect(&path).unwrap().write_all(b"connected").unwrap();
        assert_eq!(io::read_to_string(listener.accept().unwrap().0).unwrap(), "connected");

        let listener = travelled(net::TcpListener::bind("127.0.0.1:0").unwrap()).await;
        let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        travelled(client).await.write_all(b"tcp").unwrap();
        assert_eq!(io::read_to_string(travelled(listener.accept().unwrap().0).await).unwrap(), "tcp");

        let receiver = travelled(net::UdpSocket::bind("127.0.0.1:0").unwrap()).await;
        let sender = travelled(net::UdpSocket::bind("127.0.0.1:0").unwrap()).await;
        sender.send_to(b"udp", receiver.local_addr().unwrap()).unwrap();
        assert_eq!(receiver.recv(&mut buf).unwrap(), 3);
    });
}

#[test]
fn tokios_sockets_and_pipes_travel() {
    use tokio::net;
    run(60, async {
        async fn travelled<T: mp::reduction::Transferable + 'static>(value: T) -> T {
            sent::<_, Handle<T>>(Handle::new(value)).await.into_inner().unwrap()
        }
        let mut text = String::new();
        let (a, b) = net::UnixStream::pair().unwrap();
        travelled(a).await.write_all(b"stream").await.unwrap();
        travelled(b).await.read_to_string(&mut text).await.unwrap();

        let (a, b) = net::UnixDatagram::pair().unwrap();
        travelled(a).await.send(b"datagram").await.unwrap();
        assert_eq!(travelled(b).await.recv(&mut [0; 16]).await.unwrap(), 8);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = travelled(net::UnixListener::bind(&path).unwrap()).await;
        net::UnixStream::connect(&path).await.unwrap().write_all(b" connected").await.unwrap();
        listener.accept().await.unwrap().0.read_to_string(&mut text).await.unwrap();

        let listener = travelled(net::TcpListener::bind("127.0.0.1:0").await.unwrap()).await;
        let client = net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        travelled(client).await.write_all(b" tcp").await.unwrap();
        travelled(listener.accept().await.unwrap().0).await.read_to_string(&mut text).await.unwrap();

        let receiver = travelled(net::UdpSocket::bind("127.0.0.1:0").await.unwrap()).await;
        let sender = travelled(net::UdpSocket::bind("127.0.0.1:0").await.unwrap()).await;
        sender.send_to(b"udp", receiver.local_addr().unwrap()).await.unwrap();
        assert_eq!(receiver.recv(&mut [0; 16]).await.unwrap(), 3);

        let (sender, receiver) = net::unix::pipe::pipe().unwrap();
        travelled(sender).await.write_all(b" pipe").await.unwrap();
        travelled(receiver).await.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "stream connected tcp pipe");
    });
}

#[test]
fn a_socket_can_change_between_std_and_tokio() {
    run(60, async {
        let (a, b) = unix::UnixStream::pair().unwrap();
        // Blocking where it was made, and Tokio's there.
        let there: Handle<tokio::net::UnixStream> = sent(Handle::new(b)).await;
        let mut there = there.into_inner().unwrap();
        there.write_all(b"from tokio").await.unwrap();
        assert_eq!((&a).read(&mut [0; 16]).unwrap(), 10);
        // It does not block where it has come to, as its documentation says.
        let back: Handle<unix::UnixStream> = sent(Handle::new(there)).await;
        let error = back.into_inner().unwrap().read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn a_handle_is_opened_where_it_can_be() {
    let (a, _b) = unix::UnixStream::pair().unwrap();
    run(60, async {
        let handle = Handle::new(a);
        assert!(handle.get_ref().unwrap().peer_addr().is_ok());
        let received: Handle<tokio::net::UnixStream> = sent(&handle).await;
        assert!(received.get_ref().is_none() && received.as_raw_fd() > 2);
        let elsewhere = std::thread::spawn(move || received.into_inner().map(drop));
        assert!(elsewhere.join().unwrap().is_err(), "no runtime is there");
        // A pipe's wrong end, and what is none.
        let (reader, _writer) = io::pipe().unwrap();
        let wrong: Handle<tokio::net::unix::pipe::Sender> = sent(Handle::new(reader)).await;
        assert!(wrong.into_inner().is_err());
        let wrong: Handle<tokio::net::UnixStream> = sent(Handle::new(tempfile::tempfile().unwrap())).await;
        assert!(wrong.into_inner().is_err());
        // Outside of a message there is nothing beside the bytes.
        assert!(rmp_serde::to_vec(&handle).is_err());
        assert!(rmp_serde::from_slice::<Handle<File>>(&[0]).is_err());
    });
}

#[test]
fn arguments_tasks_and_values_have_handles() {
    run_each(120, |context| async move {
        let file = tempfile::tempfile().unwrap();
        let append = |handle: Handle<File>, text: String| {
            let mut file = handle.into_inner().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            Handle::new(file)
        };
        let copy = Handle::new(file.try_clone().unwrap());
        let child = context.spawn(append, (copy, "child ".to_owned())).await.unwrap();
        let back = child.await.unwrap();
        let pool = context.pool().processes(1).build().await.unwrap();
        let back = pool.apply(append, (back, "worker ".to_owned())).await.unwrap();
        let copies = (0..3).map(move |_| Handle::new(file.try_clone().unwrap()));
        let all = pool.map(
            |handle: Handle<File>| {
                handle.into_inner()?.write_all(b".")?;
                Ok::<_, mp::Failure>(())
            },
            copies,
        );
        all.await.unwrap();
        pool.shutdown(support::PATIENCE).await.unwrap();
        assert_eq!(content(back.into_inner().unwrap()), "child worker ...");
    });
}

#[test]
fn hundreds_of_handles_in_one_message() {
    run(60, async {
        let files: Vec<_> = (0..7).map(|_| Handle::new(tempfile::tempfile().unwrap())).collect();
        for count in [253, 600, 1024] {
            let all: Vec<_> = (0..count).map(|i| &files[i % 7]).collect();
            let received: Vec<Handle<File>> = sent(all).await;
            for (i, handle) in received.into_iter().enumerate() {
                write!(handle.into_inner().unwrap(), "{}", i % 7).unwrap();
            }
        }
        let (mut here, mut there) = mp::pipe().unwrap();
        let error = here.send(&vec![&files[0]; 1025]).await.unwrap_err();
        assert!(matches!(&error, mp::Error::Encode(_)) && error.to_string().contains("1024"), "{error}");
        here.send("as before").await.unwrap();
        assert_eq!(there.recv::<String>().await.unwrap(), "as before");
        for (i, file) in files.into_iter().enumerate() {
            let text = content(file.into_inner().unwrap());
            let expected = [253, 600, 1024].map(|count: usize| (count - i).div_ceil(7)).iter().sum();
            assert_eq!(text, i.to_string().repeat(expected));
        }
    });
}

/// Sends more than are allowed to be under way, so many at a time that they go in a carrier.
async fn send_beyond_what_may_be_under_way() {
    use nix::sys::resource::{Resource, setrlimit};
    if nix::unistd::geteuid().is_root() {
        // The limit is not for root, and is all processes' of a user.
        nix::unistd::setuid(nix::unistd::Uid::from_raw(64_322)).unwrap();
    }
    setrlimit(Resource::RLIMIT_NOFILE, 700, 700).unwrap();
    let (mut here, mut there) = mp::pipe().unwrap();
    let file = Handle::new(File::open("/dev/null").unwrap());
    let many = vec![&file; 260];
    let mut sent = 0;
    loop {
        let mut send = std::pin::pin!(here.send(&many));
        match futures::poll!(&mut send) {
            std::task::Poll::Ready(now) => now.unwrap(),
            std::task::Poll::Pending => {
                assert_eq!(there.recv::<Vec<Handle<File>>>().await.unwrap().len(), 260);
                send.await.unwrap();
                break;
            }
        }
        sent += 1;
        assert!(sent < 20, "nothing is limited");
    }
    for _ in 0..sent {
        assert_eq!(there.recv::<Vec<Handle<File>>>().await.unwrap().len(), 260);
    }
}

#[test]
fn many_handles_wait_as_few_do_while_too_many_are_under_way() {
    run(60, async {
        let child = mp::Process::builder(send_beyond_what_may_be_under_way, ()).start().await.unwrap();
        assert!(child.join().await.unwrap().success());
    });
}

// conformance: _TestConnection.test_missing_fd_transfer
#[test]
fn an_index_without_a_descriptor_is_an_error() {
    run(60, async {
        let (mut here, mut there) = mp::pipe().unwrap();
        here.send(&0u32).await.unwrap();
        let error = there.recv::<Handle<File>>().await.unwrap_err();
        assert!(
            matches!(&error, mp::Error::Decode(_)) && error.to_string().contains("no handle 0"),
            "{error}"
        );
        // One that is there does not make up for one that is not, nor is it given twice.
        for index in [0u32, 1, u32::MAX] {
            here.send(&(Handle::new(tempfile::tempfile().unwrap()), index)).await.unwrap();
            let error = there.recv::<(Handle<File>, Handle<File>)>().await.unwrap_err();
            assert!(matches!(error, mp::Error::Decode(_)), "{index}: {error}");
        }
        // Who does not ask for it closes it.
        let (reader, writer) = io::pipe().unwrap();
        here.send(&Handle::new(writer)).await.unwrap();
        assert_eq!(there.recv::<u32>().await.unwrap(), 0);
        assert_eq!(io::read_to_string(reader).unwrap(), "");
        here.send("as before").await.unwrap();
        assert_eq!(there.recv::<String>().await.unwrap(), "as before");
    });
}

/// What is accepted goes on to another process, and the one that accepted it keeps nothing.
// conformance: _TestPicklingConnections.test_pickling
#[test]
fn what_was_accepted_is_passed_on() {
    async fn accept(mut conn: mp::Connection) {
        let unix = mp::Listener::temporary().await.unwrap();
        let inet = mp::Listener::bind("127.0.0.1:0").await.unwrap();
        let plain = net::TcpListener::bind("127.0.0.1:0").unwrap();
        for listener in [&unix, &inet] {
            conn.send(listener.address()).await.unwrap();
            conn.send(&listener.accept().await.unwrap()).await.unwrap();
        }
        conn.send(&plain.local_addr().unwrap()).await.unwrap();
        conn.send(&Handle::new(plain.accept().unwrap().0)).await.unwrap();
    }
    async fn shout(address: mp::Address, what: String) {
        mp::Client::connect(address).await.unwrap().send(&what.to_uppercase()).await.unwrap();
    }
    fn shout_plainly(address: net::SocketAddr, what: String) {
        net::TcpStream::connect(address).unwrap().write_all(what.to_uppercase().as_bytes()).unwrap();
    }
    run_each(120, |context| async move {
        let (mut here, there) = mp::pipe().unwrap();
        let acceptor = context.process(accept, (there,)).start().await.unwrap();
        for what in ["over unix", "over inet"] {
            let address: mp::Address = here.recv().await.unwrap();
            let third = context.process(shout, (address, what.to_owned())).start().await.unwrap();
            let mut conn: mp::Connection = here.recv().await.unwrap();
            assert_eq!(conn.recv::<String>().await.unwrap(), what.to_uppercase());
            assert!(conn.recv::<String>().await.unwrap_err().is_eof());
            assert!(third.join().await.unwrap().success());
        }
        let address: net::SocketAddr = here.recv().await.unwrap();
        let third = context.process(shout_plainly, (address, "plainly".to_owned())).start().await.unwrap();
        let plain: Handle<net::TcpStream> = here.recv().await.unwrap();
        assert!(acceptor.join().await.unwrap().success());
        assert_eq!(io::read_to_string(plain.into_inner().unwrap()).unwrap(), "PLAINLY");
        assert!(third.join().await.unwrap().success());
    });
}
