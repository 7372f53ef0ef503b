package interop

import (
	"bytes"
	"context"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	solvererrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/pkg/errors"
	"github.com/stretchr/testify/require"
)

// failing solves a graph that fails and hands over what the failure left behind.
func failing(t *testing.T, make func(llb.State) llb.State, look func(context.Context, gateway.Client, error, *solvererrdefs.SolveError)) {
	t.Helper()
	ctx, c := daemon(t)
	root, mounts := tools(t)
	_, err := c.Build(ctx, client.SolveOpt{LocalMounts: mounts}, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		req := request(t, ctx, make(root))
		req.Evaluate = true
		_, err := gw.Solve(ctx, req)
		require.Error(t, err)
		var failed *solvererrdefs.SolveError
		require.ErrorAs(t, err, &failed)
		look(ctx, gw, err, failed)
		return nil, err
	}, nil)
	require.Error(t, err)
	var failed *solvererrdefs.SolveError
	require.ErrorAs(t, err, &failed)
	require.NotNil(t, failed.Solve.Op)
}

// in runs a shell command in a container whose mounts are those of a failure.
func in(t *testing.T, ctx context.Context, gw gateway.Client, mounts []gateway.Mount, command string) string {
	t.Helper()
	ctr, err := gw.NewContainer(ctx, gateway.NewContainerRequest{Mounts: mounts})
	require.NoError(t, err)
	defer ctr.Release(ctx)
	var out bytes.Buffer
	proc, err := ctr.Start(ctx, gateway.StartRequest{
		Args: []string{"sh", "-c", command}, Env: []string{"PATH=/bin"}, Stdout: nopCloser{&out},
	})
	require.NoError(t, err)
	require.NoError(t, proc.Wait())
	return out.String()
}

func bind(dest, id string) gateway.Mount {
	return gateway.Mount{Dest: dest, ResultID: id, MountType: pb.MountType_BIND}
}

func TestFailedStepCanBeLookedInto(t *testing.T) {
	failing(t, func(root llb.State) llb.State {
		return root.Run(
			sh("echo half > /half; echo more > /data/more; exit 7 # "+unique()),
			llb.AddMount("/data", llb.Scratch().File(llb.Mkfile("first", 0o600, []byte("first")))),
			llb.AddMount("/ro", llb.Scratch().File(llb.Mkfile("x", 0o600, []byte("x"))), llb.Readonly),
			llb.AddMount("/tmpfs", llb.Scratch(), llb.Tmpfs()),
			llb.WithCustomName("the failing one"),
		).Root()
	}, func(ctx context.Context, gw gateway.Client, err error, failed *solvererrdefs.SolveError) {
		exec := failed.Solve.Op.GetExec()
		require.NotNil(t, exec)
		require.Contains(t, exec.Meta.Args[2], "exit 7")
		require.Equal(t, "the failing one", failed.Solve.Description["llb.customname"])
		require.Len(t, failed.Solve.InputIDs, len(exec.Mounts))
		require.Len(t, failed.Solve.MountIDs, len(exec.Mounts))
		var exit *gatewaypb.ExitError
		require.True(t, errors.As(err, &exit))
		require.Equal(t, uint32(7), exit.ExitCode)

		ids := map[string][2]string{}
		var after []gateway.Mount
		for i, m := range exec.Mounts {
			ids[m.Dest] = [2]string{failed.Solve.InputIDs[i], failed.Solve.MountIDs[i]}
			after = append(after, gateway.Mount{
				Dest: m.Dest, Selector: m.Selector, Readonly: m.Readonly, MountType: m.MountType,
				CacheOpt: m.CacheOpt, ResultID: failed.Solve.MountIDs[i],
			})
		}
		require.Empty(t, ids["/tmpfs"][1])
		require.Equal(t, "half\nfirstmore\nx", in(t, ctx, gw, after, "cat /half /data/first /data/more /ro/x"))
		before := []gateway.Mount{bind("/", ids["/"][0]), bind("/data", ids["/data"][0])}
		require.Equal(t, "first\n", in(t, ctx, gw, before, "test ! -e /half; ls /data"))
	})
}

func TestFailedFileActionCanBeLookedInto(t *testing.T) {
	failing(t, func(root llb.State) llb.State {
		return root.File(llb.Mkdir("/a/"+unique(), 0o755))
	}, func(ctx context.Context, gw gateway.Client, err error, failed *solvererrdefs.SolveError) {
		require.NotNil(t, failed.Solve.Op.GetFile())
		require.NotNil(t, failed.Solve.GetFile())
		require.EqualValues(t, 0, failed.Solve.GetFile().Index)
		require.Len(t, failed.Solve.InputIDs, 1)
		require.Len(t, failed.Solve.MountIDs, 1)
		text := in(t, ctx, gw, []gateway.Mount{bind("/", failed.Solve.MountIDs[0])}, "ls /bin/sh")
		require.Equal(t, "/bin/sh\n", text)
	})
}

func TestFailedChecksumCanBeLookedInto(t *testing.T) {
	failing(t, func(root llb.State) llb.State {
		return llb.Scratch().File(llb.Copy(root, "/missing-"+unique(), "/x"))
	}, func(ctx context.Context, gw gateway.Client, err error, failed *solvererrdefs.SolveError) {
		require.NotNil(t, failed.Solve.GetCache())
		require.Len(t, failed.Solve.InputIDs, 1)
		text := in(t, ctx, gw, []gateway.Mount{bind("/", failed.Solve.InputIDs[0])}, "ls /bin/sh")
		require.Equal(t, "/bin/sh\n", text)
	})
}
