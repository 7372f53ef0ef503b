package interop

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// metadata asks the frontend and returns what it says.
func metadata(t *testing.T, ctx context.Context, c *client.Client, opt client.SolveOpt) map[string][]byte {
	t.Helper()
	var meta map[string][]byte
	frontend := opt.Frontend
	opt.Frontend = ""
	_, err := c.Build(ctx, opt, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		res, err := gw.Solve(ctx, gateway.SolveRequest{Frontend: frontend, FrontendOpt: opt.FrontendAttrs})
		if err == nil {
			meta = res.Metadata
		}
		return res, err
	}, nil)
	require.NoError(t, err)
	return meta
}

func request(t *testing.T, ctx context.Context, st llb.State) gateway.SolveRequest {
	t.Helper()
	def, err := st.Marshal(ctx, llb.LinuxAmd64)
	require.NoError(t, err)
	return gateway.SolveRequest{Definition: def.ToPB()}
}

func TestGatewayFiles(t *testing.T) {
	ctx, c := daemon(t)
	st := llb.Scratch().
		File(llb.Mkdir("/dir", 0o750)).
		File(llb.Mkfile("/dir/file", 0o640, []byte("0123456789"))).
		File(llb.Mkfile("/dir/other", 0o600, nil)).
		File(llb.Symlink("dir/file", "/link"))
	_, err := c.Build(ctx, client.SolveOpt{}, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		res, err := gw.Solve(ctx, request(t, ctx, st))
		require.NoError(t, err)
		ref, err := res.SingleRef()
		require.NoError(t, err)

		data, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/link"})
		require.NoError(t, err)
		require.Equal(t, "0123456789", string(data))
		data, err = ref.ReadFile(ctx, gateway.ReadRequest{Filename: "dir/file", Range: &gateway.FileRange{Offset: 3, Length: 4}})
		require.NoError(t, err)
		require.Equal(t, "3456", string(data))
		_, err = ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/none"})
		require.ErrorContains(t, err, "no such file or directory")
		_, err = ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/dir"})
		require.Error(t, err)

		entries, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/dir"})
		require.NoError(t, err)
		require.Len(t, entries, 2)
		require.Equal(t, "file", entries[0].Path)
		require.Equal(t, int64(10), entries[0].Size)
		require.Equal(t, uint32(0o640), entries[0].Mode)
		entries, err = ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/dir", IncludePattern: "o*"})
		require.NoError(t, err)
		require.Len(t, entries, 1)

		stat, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/dir"})
		require.NoError(t, err)
		require.True(t, stat.IsDir())
		require.NoError(t, ref.Evaluate(ctx))

		state, err := ref.ToState()
		require.NoError(t, err)
		again, err := gw.Solve(ctx, request(t, ctx, state.File(llb.Mkfile("/new", 0o644, []byte("n")))))
		require.NoError(t, err)
		return again, nil
	}, nil)
	require.NoError(t, err)
}

func TestGatewayLazyAndEvaluate(t *testing.T) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	bad := root.Run(sh("exit 3 # " + unique())).Root()
	_, err := c.Build(ctx, client.SolveOpt{LocalMounts: mounts}, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		req := request(t, ctx, bad)
		res, err := gw.Solve(ctx, req)
		require.NoError(t, err, "a solve is lazy")
		ref, err := res.SingleRef()
		require.NoError(t, err)
		require.ErrorContains(t, ref.Evaluate(ctx), "exit code: 3")
		req.Evaluate = true
		_, err = gw.Solve(ctx, req)
		require.ErrorContains(t, err, "exit code: 3")
		return gateway.NewResult(), nil
	}, nil)
	require.NoError(t, err)
}

func TestGatewayErrorReachesTheCaller(t *testing.T) {
	ctx, c := daemon(t)
	_, err := c.Build(ctx, client.SolveOpt{}, "interop", func(context.Context, gateway.Client) (*gateway.Result, error) {
		return nil, errors.New("the client says no")
	}, nil)
	require.ErrorContains(t, err, "the client says no")
}

func TestGatewayCapsAndWorkers(t *testing.T) {
	ctx, c := daemon(t)
	_, err := c.Build(ctx, client.SolveOpt{}, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		opts := gw.BuildOpts()
		require.NotEmpty(t, opts.Workers)
		require.NotEmpty(t, opts.Workers[0].Platforms)
		require.NotEmpty(t, opts.SessionID)
		for _, id := range []string{"solve.base", "readfile", "readdir", "statfile", "gateway.exec", "source.metaresolver"} {
			require.NoError(t, opts.Caps.Supports(gatewaypb.CapReadFile), id)
		}
		for _, id := range []string{"exec.mount.cache", "file.base", "mergeop", "diffop", "source.local", "source.image"} {
			require.True(t, opts.LLBCaps.Contains(pb.CapExecMountCache), id)
		}
		return gateway.NewResult(), nil
	}, nil)
	require.NoError(t, err)
}

func TestGatewayMapResult(t *testing.T) {
	ctx, c := daemon(t)
	opt := client.SolveOpt{}
	dir := into(t, &opt)
	_, err := c.Build(ctx, opt, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		res := gateway.NewResult()
		for _, platform := range []string{"linux/amd64", "linux/arm64"} {
			st := llb.Scratch().File(llb.Mkfile("/platform", 0o644, []byte(platform)))
			one, err := gw.Solve(ctx, request(t, ctx, st))
			if err != nil {
				return nil, err
			}
			ref, err := one.SingleRef()
			if err != nil {
				return nil, err
			}
			res.AddRef(platform, ref)
		}
		res.AddMeta("refs.platforms", []byte(`{"Platforms":[
			{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},
			{"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}]}`))
		return res, nil
	}, nil)
	require.NoError(t, err)
	require.Equal(t, "linux/amd64", read(t, dir, "linux_amd64", "platform"))
	require.Equal(t, "linux/arm64", read(t, dir, "linux_arm64", "platform"))
}

func TestGatewayInputs(t *testing.T) {
	ctx, c := daemon(t)
	st := llb.Scratch().File(llb.Mkfile("/in", 0o644, []byte("input")))
	opt := client.SolveOpt{FrontendInputs: map[string]llb.State{"name": st}}
	_, err := c.Build(ctx, opt, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		inputs, err := gw.Inputs(ctx)
		require.NoError(t, err)
		require.Contains(t, inputs, "name")
		res, err := gw.Solve(ctx, request(t, ctx, inputs["name"]))
		require.NoError(t, err)
		ref, err := res.SingleRef()
		require.NoError(t, err)
		data, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "in"})
		require.NoError(t, err)
		require.Equal(t, "input", string(data))
		return res, nil
	}, nil)
	require.NoError(t, err)
}

func TestGatewayWarn(t *testing.T) {
	ctx, c := daemon(t)
	st := llb.Scratch().File(llb.Mkfile("/w", 0o644, []byte(unique())))
	ch, r := watch()
	_, err := c.Build(ctx, client.SolveOpt{}, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		req := request(t, ctx, st)
		req.Evaluate = true
		res, err := gw.Solve(ctx, req)
		require.NoError(t, err)
		dgst := digest.FromBytes(req.Definition.Def[0])
		require.NoError(t, gw.Warn(ctx, dgst, "be careful", gateway.WarnOpts{Level: 2, URL: "https://example.com"}))
		return res, nil
	}, ch)
	r.wait()
	require.NoError(t, err)
	require.Len(t, r.warnings, 1)
	require.Equal(t, "be careful", string(r.warnings[0].Short))
	require.Equal(t, 2, r.warnings[0].Level)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// container runs fn with a container of the tools.
func container(t *testing.T, fn func(ctx context.Context, ctr gateway.Container)) {
	ctx, c := daemon(t)
	root, mounts := tools(t)
	_, err := c.Build(ctx, client.SolveOpt{LocalMounts: mounts}, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		req := request(t, ctx, root)
		req.Evaluate = true
		res, err := gw.Solve(ctx, req)
		require.NoError(t, err)
		ref, err := res.SingleRef()
		require.NoError(t, err)
		ctr, err := gw.NewContainer(ctx, gateway.NewContainerRequest{
			Mounts: []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: ref}},
		})
		require.NoError(t, err)
		fn(ctx, ctr)
		return gateway.NewResult(), nil
	}, nil)
	require.NoError(t, err)
}

func TestContainerStreams(t *testing.T) {
	container(t, func(ctx context.Context, ctr gateway.Container) {
		var out, errs bytes.Buffer
		proc, err := ctr.Start(ctx, gateway.StartRequest{
			Args:   []string{"sh", "-c", "cat; echo $KEY >&2; pwd"},
			Env:    []string{"PATH=/bin", "KEY=value"},
			Cwd:    "/bin",
			Stdin:  io.NopCloser(strings.NewReader("fed\n")),
			Stdout: nopCloser{&out},
			Stderr: nopCloser{&errs},
		})
		require.NoError(t, err)
		require.NoError(t, proc.Wait())
		require.Equal(t, "fed\n/bin\n", out.String())
		require.Equal(t, "value\n", errs.String())
		require.NoError(t, ctr.Release(ctx))
	})
}

func TestContainerExitCode(t *testing.T) {
	container(t, func(ctx context.Context, ctr gateway.Container) {
		proc, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"sh", "-c", "exit 9"}, Env: []string{"PATH=/bin"}})
		require.NoError(t, err)
		var exit *gatewaypb.ExitError
		require.ErrorAs(t, proc.Wait(), &exit)
		require.Equal(t, uint32(9), exit.ExitCode)
		ctr.Release(ctx)
	})
}

func TestContainerSecondProcess(t *testing.T) {
	container(t, func(ctx context.Context, ctr gateway.Container) {
		env := []string{"PATH=/bin"}
		first, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"sh", "-c", "echo one > /shared; sleep 60"}, Env: env})
		require.NoError(t, err)
		var out bytes.Buffer
		second, err := ctr.Start(ctx, gateway.StartRequest{
			Args:   []string{"sh", "-c", "while ! test -s /shared; do sleep 0.1; done; cat /shared"},
			Env:    env,
			Stdout: nopCloser{&out},
		})
		require.NoError(t, err)
		require.NoError(t, second.Wait())
		require.Equal(t, "one\n", out.String())
		// Releasing may report how the first process ended.
		ctr.Release(ctx)
		require.Error(t, first.Wait())
	})
}
