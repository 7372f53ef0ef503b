package interop

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/identity"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// replay reads a build's status stream to its end.
func replay(t *testing.T, ctx context.Context, c *client.Client, ref string) *record {
	t.Helper()
	ch, r := watch()
	stream, err := c.ControlClient().Status(ctx, &controlapi.StatusRequest{Ref: ref})
	require.NoError(t, err)
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		ch <- client.NewSolveStatus(msg)
	}
	close(ch)
	r.wait()
	return r
}

func TestLateSubscriberSeesEverything(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	st := root.Run(sh("echo early; sleep 2; echo late # "+unique()), llb.WithCustomName("the step")).Root()
	ref := identity.NewID()
	def, err := st.Marshal(ctx, llb.LinuxAmd64)
	require.NoError(t, err)
	ch, live := watch()
	done := make(chan error, 1)
	go func() {
		_, err := c.Solve(ctx, def, client.SolveOpt{Ref: ref, LocalMounts: mounts}, ch)
		done <- err
	}()
	time.Sleep(time.Second)
	during := replay(t, ctx, c, ref)
	require.NoError(t, <-done)
	live.wait()
	after := replay(t, ctx, c, ref)
	for name, r := range map[string]*record{"live": live, "during": during, "after": after} {
		v := r.named(t, "the step")
		require.Equal(t, "early\nlate\n", r.output(v), name)
		require.NotNil(t, v.Completed, name)
		require.Len(t, r.vertexes, len(live.vertexes), name)
	}
}

// TestEmptyGraph builds the empty tree: there is no frontend to wait for.
func TestEmptyGraph(t *testing.T) {
	ctx, c := daemon(t)
	opt := client.SolveOpt{}
	dir := into(t, &opt)
	_, _, err := solveState(t, ctx, c, llb.Scratch(), opt)
	require.NoError(t, err)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestStatusOfUnknownBuild(t *testing.T) {
	ctx, c := daemon(t)
	stream, err := c.ControlClient().Status(ctx, &controlapi.StatusRequest{Ref: identity.NewID()})
	require.NoError(t, err)
	_, err = stream.Recv()
	require.Equal(t, codes.NotFound, status.Code(err))
	require.ErrorContains(t, err, "no such job")
}

func TestCancel(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	st := root.Run(sh("sleep 100 # "+unique()), llb.WithCustomName("sleeper")).Root()
	def, err := st.Marshal(ctx, llb.LinuxAmd64)
	require.NoError(t, err)
	canceled, cancel := context.WithCancel(ctx)
	ch := make(chan *client.SolveStatus)
	r := &record{vertexes: map[string]*client.Vertex{}}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for s := range ch {
			r.add(s)
			for _, v := range s.Vertexes {
				if v.Name == "sleeper" && v.Started != nil && v.Completed == nil {
					cancel()
				}
			}
		}
	}()
	began := time.Now()
	_, err = c.Solve(canceled, def, client.SolveOpt{LocalMounts: mounts}, ch)
	<-drained
	require.Error(t, err)
	require.Less(t, time.Since(began), 30*time.Second)
	v := r.named(t, "sleeper")
	require.NotNil(t, v.Completed)
	require.Contains(t, v.Error, "context canceled")
}

func TestSameRefTwice(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	ref := identity.NewID()
	st := root.Run(sh("sleep 2 # " + unique())).Root()
	def, err := st.Marshal(ctx, llb.LinuxAmd64)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := c.Solve(ctx, def, client.SolveOpt{Ref: ref, LocalMounts: mounts}, nil)
		done <- err
	}()
	time.Sleep(time.Second)
	_, err = c.Solve(ctx, def, client.SolveOpt{Ref: ref, LocalMounts: mounts}, nil)
	require.ErrorContains(t, err, "exists")
	require.NoError(t, <-done)
}

func TestTwoBuildsShareARunningStep(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	st := root.Run(sh("sleep 2; cat /proc/sys/kernel/random/uuid > /id # " + unique())).Root()
	def, err := st.Marshal(ctx, llb.LinuxAmd64)
	require.NoError(t, err)
	type result struct {
		dir string
		err error
	}
	results := make(chan result, 2)
	for range 2 {
		opt := client.SolveOpt{LocalMounts: mounts}
		dir := into(t, &opt)
		go func() {
			_, err := c.Solve(ctx, def, opt, nil)
			results <- result{dir, err}
		}()
	}
	a, b := <-results, <-results
	require.NoError(t, a.err)
	require.NoError(t, b.err)
	require.Equal(t, read(t, a.dir, "id"), read(t, b.dir, "id"))
}

func TestLateBuildGetsTheWholeLog(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	st := root.Run(sh("echo early; sleep 3; echo late # "+unique()), llb.WithCustomName("shared")).Root()
	first := make(chan *record, 1)
	go func() {
		_, r, err := solveState(t, ctx, c, st, client.SolveOpt{LocalMounts: mounts})
		if err != nil {
			t.Error(err)
		}
		first <- r
	}()
	time.Sleep(1500 * time.Millisecond)
	_, late, err := solveState(t, ctx, c, st, client.SolveOpt{LocalMounts: mounts})
	require.NoError(t, err)
	for _, r := range []*record{<-first, late} {
		require.Equal(t, "early\nlate\n", r.output(r.named(t, "shared")))
	}
}
