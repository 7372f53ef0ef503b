// Package interop drives a build daemon with the official Go client library.
//
// The daemon's address comes from RBUILD_ADDR; without it every test is skipped. The tests state
// what any daemon with this interface does, and are first run against BuildKit itself.
//
// Nothing is pulled: images are built from scratch and a static busybox (RBUILD_TEST_BUSYBOX, or
// the one on PATH).
package interop

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

const base = `FROM scratch AS base
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
ENV PATH=/bin
`

// daemon connects to the daemon under test.
func daemon(t *testing.T) (context.Context, *client.Client) {
	t.Helper()
	addr := os.Getenv("RBUILD_ADDR")
	if addr == "" {
		t.Skip("RBUILD_ADDR does not name a daemon")
	}
	if !strings.Contains(addr, "://") {
		addr = "unix://" + addr
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	c, err := client.New(ctx, addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return ctx, c
}

func busybox(t *testing.T) string {
	t.Helper()
	path := os.Getenv("RBUILD_TEST_BUSYBOX")
	if path == "" {
		found, err := exec.LookPath("busybox")
		if err != nil {
			t.Skip("no busybox: install busybox-static or set RBUILD_TEST_BUSYBOX")
		}
		path = found
	}
	return path
}

// tree writes files, path to content, into a new folder together with busybox.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	copyFile(t, busybox(t), filepath.Join(dir, "busybox"))
	return dir
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	require.NoError(t, err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	require.NoError(t, err)
	_, err = io.Copy(out, in)
	require.NoError(t, err)
	require.NoError(t, out.Close())
	// The same time everywhere, so that different tests share cached results.
	at := time.Unix(1700000000, 0)
	require.NoError(t, os.Chtimes(to, at, at))
}

func mount(t *testing.T, dir string) fsutil.FS {
	t.Helper()
	fs, err := fsutil.NewFS(dir)
	require.NoError(t, err)
	return fs
}

// fromDir is a request for a Dockerfile build of a folder.
func fromDir(t *testing.T, dir string) client.SolveOpt {
	t.Helper()
	return client.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: map[string]string{},
		LocalMounts:   map[string]fsutil.FS{"context": mount(t, dir), "dockerfile": mount(t, dir)},
	}
}

// dockerfile is a request for a build of base plus text, with files beside it.
func dockerfile(t *testing.T, text string, files map[string]string) client.SolveOpt {
	t.Helper()
	all := map[string]string{"Dockerfile": base + text}
	for name, content := range files {
		all[name] = content
	}
	return fromDir(t, tree(t, all))
}

// into adds a local export to a new folder and returns the folder.
func into(t *testing.T, opt *client.SolveOpt) string {
	t.Helper()
	dir := t.TempDir()
	opt.Exports = append(opt.Exports, client.ExportEntry{Type: client.ExporterLocal, OutputDir: dir})
	return dir
}

// record collects everything a build reported.
type record struct {
	mu       sync.Mutex
	vertexes map[string]*client.Vertex
	logs     []*client.VertexLog
	statuses []*client.VertexStatus
	warnings []*client.VertexWarning
	done     chan struct{}
}

func watch() (chan *client.SolveStatus, *record) {
	ch := make(chan *client.SolveStatus)
	r := &record{vertexes: map[string]*client.Vertex{}, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		for s := range ch {
			r.add(s)
		}
	}()
	return ch, r
}

func (r *record) add(s *client.SolveStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range s.Vertexes {
		r.vertexes[string(v.Digest)] = v
	}
	r.logs = append(r.logs, s.Logs...)
	r.statuses = append(r.statuses, s.Statuses...)
	r.warnings = append(r.warnings, s.Warnings...)
}

func (r *record) wait() { <-r.done }

// named finds a vertex by a part of its name.
func (r *record) named(t *testing.T, part string) *client.Vertex {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, v := range r.vertexes {
		if strings.Contains(v.Name, part) {
			return v
		}
		names = append(names, v.Name)
	}
	require.Failf(t, "no such vertex", "%q is not in %q", part, names)
	return nil
}

// output is what a vertex wrote.
func (r *record) output(v *client.Vertex) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b strings.Builder
	for _, l := range r.logs {
		if l.Vertex == v.Digest {
			b.Write(l.Data)
		}
	}
	return b.String()
}

// solve runs a build whose frontend the daemon drives.
func solve(ctx context.Context, c *client.Client, opt client.SolveOpt) (*client.SolveResponse, *record, error) {
	ch, r := watch()
	resp, err := c.Solve(ctx, nil, opt, ch)
	r.wait()
	return resp, r, err
}

// solveClient runs a build the way buildctl does: the client drives the frontend.
func solveClient(ctx context.Context, c *client.Client, opt client.SolveOpt) (*client.SolveResponse, *record, error) {
	ch, r := watch()
	frontend := opt.Frontend
	opt.Frontend = ""
	resp, err := c.Build(ctx, opt, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		return gw.Solve(ctx, gateway.SolveRequest{Frontend: frontend, FrontendOpt: opt.FrontendAttrs})
	}, ch)
	r.wait()
	return resp, r, err
}

// solveState builds a graph.
func solveState(t *testing.T, ctx context.Context, c *client.Client, st llb.State, opt client.SolveOpt) (*client.SolveResponse, *record, error) {
	t.Helper()
	def, err := st.Marshal(ctx, llb.LinuxAmd64)
	require.NoError(t, err)
	ch, r := watch()
	resp, err := c.Solve(ctx, def, opt, ch)
	r.wait()
	return resp, r, err
}

// tools is a root file system with busybox, and the mounts a build of it needs.
func tools(t *testing.T) (llb.State, map[string]fsutil.FS) {
	t.Helper()
	dir := tree(t, nil)
	src := llb.Local("tools", llb.IncludePatterns([]string{"busybox"}), llb.SharedKeyHint("interop-tools"))
	root := llb.Scratch().
		File(llb.Copy(src, "busybox", "/bin/busybox", &llb.CopyInfo{CreateDestPath: true})).
		Run(llb.Args([]string{"/bin/busybox", "--install", "-s", "/bin"})).Root().
		AddEnv("PATH", "/bin")
	return root, map[string]fsutil.FS{"tools": mount(t, dir)}
}

func sh(script string) llb.RunOption {
	return llb.Args([]string{"sh", "-c", script})
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elem...))
	require.NoError(t, err)
	return string(data)
}

// unique is a text that makes a step new to every daemon.
func unique() string { return identity.NewID() }
