use tokio_multiprocess as mp;

fn main() {
    mp::set_forkserver_preload(["a::module"], mp::OnPreloadError::Fail);
}
