package interop

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content/proxy"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	grpcmetadata "google.golang.org/grpc/metadata"
)

func TestWorkersAndInfo(t *testing.T) {
	ctx, c := daemon(t)
	workers, err := c.ListWorkers(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, workers)
	require.NotEmpty(t, workers[0].ID)
	require.Equal(t, "linux", workers[0].Platforms[0].OS)
	require.NotEmpty(t, workers[0].GCPolicy)
	for _, label := range []string{"executor", "snapshotter", "hostname", "network"} {
		require.NotEmpty(t, workers[0].Labels["org.mobyproject.buildkit.worker."+label], label)
	}
	again, err := c.ListWorkers(ctx, client.WithFilter([]string{"id==" + workers[0].ID}))
	require.NoError(t, err)
	require.Len(t, again, 1)
	none, err := c.ListWorkers(ctx, client.WithFilter([]string{"id==nobody"}))
	require.NoError(t, err)
	require.Empty(t, none)
	info, err := c.Info(ctx)
	require.NoError(t, err)
	require.NotEmpty(t, info.BuildkitVersion.Version)
	require.NotEmpty(t, info.BuildkitVersion.DockerfileVersion)
}

// usage finds a record by its description.
func usage(t *testing.T, ctx context.Context, c *client.Client, filter ...string) []*client.UsageInfo {
	t.Helper()
	du, err := c.DiskUsage(ctx, client.WithFilter(filter))
	require.NoError(t, err)
	return du
}

func TestDiskUsageAndPrune(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	id := unique()
	st := root.Run(
		sh("dd if=/dev/zero of=/big bs=1M count=3; touch /cache/f # "+id),
		llb.AddMount("/cache", llb.Scratch(), llb.AsPersistentCacheDir(id, llb.CacheMountShared)),
	).Root()
	_, _, err := solveState(t, ctx, c, st, client.SolveOpt{LocalMounts: mounts})
	require.NoError(t, err)

	find := func() *client.UsageInfo {
		for _, u := range usage(t, ctx, c, "description~="+id) {
			if u.RecordType == client.UsageRecordTypeRegular {
				return u
			}
		}
		return nil
	}
	var big *client.UsageInfo
	require.Eventually(t, func() bool { big = find(); return big != nil && !big.InUse }, 20*time.Second, 100*time.Millisecond)
	require.GreaterOrEqual(t, big.Size, int64(3<<20))
	require.Less(t, big.Size, int64(4<<20))
	require.Len(t, big.Parents, 1)

	ch := make(chan client.UsageInfo)
	var pruned []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range ch {
			pruned = append(pruned, u.ID)
		}
	}()
	err = c.Prune(ctx, ch, client.WithFilter([]string{"id==" + big.ID}))
	close(ch)
	<-done
	require.NoError(t, err)
	require.Equal(t, []string{big.ID}, pruned)
	require.Nil(t, find())
}

func TestPrunedStepsRunAgain(t *testing.T) {
	ctx, c := daemon(t)
	text := "RUN cat /proc/sys/kernel/random/uuid > /id # " + unique() + "\n"
	opt := dockerfile(t, text, nil)
	first := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	// What a build used is released a moment after it.
	for {
		require.NoError(t, prune(ctx, c))
		if len(usage(t, ctx, c, "description~=random/uuid")) == 0 {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	opt = dockerfile(t, text, nil)
	second := into(t, &opt)
	_, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.False(t, r.named(t, "RUN cat").Cached)
	require.NotEqual(t, read(t, first, "id"), read(t, second, "id"))
}

func TestHistory(t *testing.T) {
	ctx, c := daemon(t)
	ref := identity.NewID()
	opt := dockerfile(t, "RUN exit 4\n", nil)
	opt.Ref = ref
	_, _, err := solve(ctx, c, opt)
	require.Error(t, err)
	events := func() []*controlapi.BuildHistoryEvent {
		stream, err := c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{Ref: ref, EarlyExit: true})
		require.NoError(t, err)
		var out []*controlapi.BuildHistoryEvent
		for {
			ev, err := stream.Recv()
			// A deleted build may be an error or nothing at all.
			if err != nil {
				return out
			}
			out = append(out, ev)
		}
	}
	var found []*controlapi.BuildHistoryEvent
	require.Eventually(t, func() bool {
		found = events()
		return len(found) > 0 && found[len(found)-1].Type == controlapi.BuildHistoryEventType_COMPLETE
	}, 20*time.Second, 100*time.Millisecond)
	rec := found[len(found)-1].Record
	require.Equal(t, ref, rec.Ref)
	require.Equal(t, "dockerfile.v0", rec.Frontend)
	require.Contains(t, rec.Error.Message, "exit code: 4")
	require.NotNil(t, rec.CompletedAt)
	require.NotZero(t, rec.NumTotalSteps)
	require.NotNil(t, rec.Logs)

	_, err = c.ControlClient().UpdateBuildHistory(ctx, &controlapi.UpdateBuildHistoryRequest{Ref: ref, Delete: true})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(events()) == 0 }, 20*time.Second, 100*time.Millisecond)
}

// TestHistoryKeepsTheTrace of a build whose client traces.
func TestHistoryKeepsTheTrace(t *testing.T) {
	ctx, c := daemon(t)
	const trace = "0af7651916cd43dd8448eb211c80319c"
	traced := grpcmetadata.AppendToOutgoingContext(ctx, "traceparent", "00-"+trace+"-b7ad6b7169203331-01")
	opt := dockerfile(t, "RUN true # "+unique()+"\n", nil)
	opt.Ref = identity.NewID()
	_, _, err := solve(traced, c, opt)
	require.NoError(t, err)
	var kept *controlapi.Descriptor
	require.Eventually(t, func() bool {
		stream, err := c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{Ref: opt.Ref, EarlyExit: true})
		require.NoError(t, err)
		for {
			ev, err := stream.Recv()
			if err != nil {
				return kept != nil
			}
			kept = ev.Record.Trace
		}
	}, 20*time.Second, 100*time.Millisecond)
	require.Equal(t, "application/vnd.buildkit.otlp.json.v0", kept.MediaType)
	read, err := proxy.NewContentStore(c.ContentClient()).ReaderAt(ctx, ocispecs.Descriptor{Digest: digest.Digest(kept.Digest), Size: kept.Size})
	require.NoError(t, err)
	defer read.Close()
	spans := json.NewDecoder(io.NewSectionReader(read, 0, read.Size()))
	var names []string
	for {
		var span struct {
			Name        string
			SpanContext struct{ TraceID string }
		}
		if spans.Decode(&span) != nil {
			break
		}
		require.Equal(t, trace, span.SpanContext.TraceID)
		names = append(names, span.Name)
	}
	require.Contains(t, names, "moby.buildkit.v1.Control/Solve")
}

func TestLocalCache(t *testing.T) {
	ctx, c := daemon(t)
	dir := filepath.Join(t.TempDir(), "cache")
	text := "RUN echo " + unique() + " > /id; cat /proc/sys/kernel/random/uuid >> /id\n"
	opt := dockerfile(t, text, nil)
	opt.CacheExports = []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"dest": dir, "mode": "max"}}}
	first := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "index.json"))

	require.NoError(t, prune(ctx, c))
	opt = dockerfile(t, text, nil)
	opt.CacheImports = []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"src": dir}}}
	second := into(t, &opt)
	_, r, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.True(t, r.named(t, "RUN echo").Cached)
	require.Equal(t, read(t, first, "id"), read(t, second, "id"))
}

// prune removes everything unused.
func prune(ctx context.Context, c *client.Client) error {
	return c.Prune(ctx, nil, client.PruneAll)
}

// TestSSHForward forwards a socket of any protocol and talks over it from a step.
func TestSSHForward(t *testing.T) {
	ctx, c := daemon(t)
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				line, _ := bufio.NewReader(conn).ReadString('\n')
				io.WriteString(conn, "echo "+line)
			}()
		}
	}()
	provider, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{ID: "raw", Paths: []string{path}, Raw: true}})
	require.NoError(t, err)
	src := tree(t, map[string]string{
		"Dockerfile": base + "RUN --mount=type=ssh,id=raw,target=/s --mount=type=bind,target=/ctx test -S /s && echo hi | /ctx/dial /s > /out # " + unique() + "\n",
	})
	build := exec.Command("go", "build", "-o", filepath.Join(src, "dial"), "./dial")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	text, err := build.CombinedOutput()
	require.NoError(t, err, string(text))
	opt := fromDir(t, src)
	opt.Session = []session.Attachable{provider}
	dir := into(t, &opt)
	_, _, err = solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "echo hi\n", read(t, dir, "out"))

	opt = dockerfile(t, "RUN --mount=type=ssh,required true # "+unique()+"\n", nil)
	_, _, err = solve(ctx, c, opt)
	require.ErrorContains(t, err, "no SSH key")
}
