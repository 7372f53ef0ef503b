package interop

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/stretchr/testify/require"
)

// ourFrontend pushes an image of the program in ./frontend and returns its name.
func ourFrontend(t *testing.T, labels ...string) string {
	t.Helper()
	host := os.Getenv("RBUILD_TEST_REGISTRY")
	if host == "" {
		t.Skip("RBUILD_TEST_REGISTRY does not name a registry")
	}
	ctx, c := daemon(t)
	dir := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "fe"), "./frontend")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	text := "FROM scratch\nCOPY fe /bin/fe\nENTRYPOINT [\"/bin/fe\"]\n"
	for _, label := range labels {
		text += "LABEL " + label + "\n"
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644))
	name := host + "/our/frontend:" + unique()
	opt := fromDir(t, dir)
	opt.Exports = []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
		"name": name, "push": "true", "registry.insecure": "true",
	}}}
	_, _, err = solve(ctx, c, opt)
	require.NoError(t, err)
	return name
}

// lines is a request for a build of a file in our frontend's language.
func lines(t *testing.T, text string) client.SolveOpt {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644))
	return fromDir(t, dir)
}

const allCaps = "moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,moby.buildkit.frontend.contexts"

func TestFrontendImage(t *testing.T) {
	image := ourFrontend(t, allCaps)
	ctx, c := daemon(t)
	text := "# syntax=" + image + " more words\nfile /a some text\nopt /source source\nopt /cmdline cmdline\nopt /arg build-arg:x\n"
	for _, how := range []func() (*client.SolveResponse, string, error){
		func() (*client.SolveResponse, string, error) {
			opt := lines(t, text)
			opt.FrontendAttrs["build-arg:x"] = "given"
			dir := into(t, &opt)
			resp, _, err := solve(ctx, c, opt)
			return resp, dir, err
		},
		func() (*client.SolveResponse, string, error) {
			opt := lines(t, text)
			opt.FrontendAttrs["build-arg:x"] = "given"
			dir := into(t, &opt)
			resp, _, err := solveClient(ctx, c, opt)
			return resp, dir, err
		},
		func() (*client.SolveResponse, string, error) {
			opt := lines(t, strings.SplitN(text, "\n", 2)[1])
			opt.Frontend = "gateway.v0"
			opt.FrontendAttrs = map[string]string{"source": image, "cmdline": image + " more words", "build-arg:x": "given"}
			dir := into(t, &opt)
			resp, _, err := solve(ctx, c, opt)
			return resp, dir, err
		},
	} {
		resp, dir, err := how()
		require.NoError(t, err)
		require.Equal(t, "some text", read(t, dir, "a"))
		require.Equal(t, image, read(t, dir, "source"))
		require.Equal(t, image+" more words", read(t, dir, "cmdline"))
		require.Equal(t, "given", read(t, dir, "arg"))
		require.Equal(t, "buildkit", resp.ExporterResponse["frontend.ours"])
	}
}

func TestFrontendImageInputsAndContainers(t *testing.T) {
	image := ourFrontend(t, allCaps)
	ctx, c := daemon(t)
	root, mounts := tools(t)
	opt := lines(t, "input /copied extra\nexec /said echo made in a container; hostname >&2\n")
	opt.Frontend = "gateway.v0"
	opt.FrontendAttrs = map[string]string{"source": image}
	opt.FrontendInputs = map[string]llb.State{
		"extra": llb.Scratch().File(llb.Mkfile("/inside", 0o600, []byte("of the input"))),
		"tools": root,
	}
	for name, fs := range mounts {
		opt.LocalMounts[name] = fs
	}
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "of the input", read(t, dir, "copied", "inside"))
	require.Equal(t, "made in a container\n", read(t, dir, "said"))
}

func TestFrontendImageErrors(t *testing.T) {
	image := ourFrontend(t, allCaps)
	ctx, c := daemon(t)

	opt := lines(t, "# syntax="+image+"\nfile /a b\nfail on purpose\n")
	_, _, err := solveClient(ctx, c, opt)
	require.ErrorContains(t, err, "on purpose")
	sources := errdefs.Sources(err)
	require.NotEmpty(t, sources)
	require.Equal(t, int32(3), sources[0].Ranges[0].Start.Line)
	var fe *errdefs.FrontendError
	require.ErrorAs(t, err, &fe)
	require.Equal(t, image, fe.Source)

	opt = lines(t, "# syntax="+image+"\n")
	opt.FrontendAttrs["crash"] = "now"
	_, _, err = solve(ctx, c, opt)
	require.ErrorContains(t, err, "exit code: 3")

	opt = lines(t, "# syntax="+image+"\n")
	opt.FrontendAttrs["frontend.caps"] = "moby.buildkit.frontend.other"
	_, _, err = solveClient(ctx, c, opt)
	var capErr *errdefs.UnsupportedFrontendCapError
	require.ErrorAs(t, err, &capErr)
	require.Equal(t, "moby.buildkit.frontend.other", capErr.Name)
}

func TestFrontendImageWithoutInputs(t *testing.T) {
	image := ourFrontend(t, "moby.buildkit.frontend.network.none=true")
	ctx, c := daemon(t)
	opt := lines(t, "file /a b\n")
	opt.Frontend = "gateway.v0"
	opt.FrontendAttrs = map[string]string{"source": image}
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "b", read(t, dir, "a"))

	opt = lines(t, "file /a b\n")
	opt.Frontend = "gateway.v0"
	opt.FrontendAttrs = map[string]string{"source": image}
	opt.FrontendInputs = map[string]llb.State{"x": llb.Scratch().File(llb.Mkfile("/x", 0o600, nil))}
	_, _, err = solve(ctx, c, opt)
	require.ErrorContains(t, err, "unsupported frontend capability moby.buildkit.frontend.inputs")
}

func TestFrontendImageReplacedByContext(t *testing.T) {
	image := ourFrontend(t, allCaps)
	ctx, c := daemon(t)
	opt := lines(t, "# syntax=example.com/no/such:image\nfile /a b\n")
	opt.FrontendAttrs["context:example.com/no/such:image"] = "docker-image://" + image
	dir := into(t, &opt)
	_, _, err := solve(ctx, c, opt)
	require.NoError(t, err)
	require.Equal(t, "b", read(t, dir, "a"))
}

// An input of a linked build: the definition that a ref carries.
func TestFrontendImageAmongOthers(t *testing.T) {
	image := ourFrontend(t, allCaps)
	ctx, c := daemon(t)
	opt := lines(t, "# syntax="+image+"\nfile /a b\n")
	dir := into(t, &opt)
	opt.Frontend = ""
	_, err := c.Build(ctx, opt, "interop", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		res, err := gw.Solve(ctx, gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: opt.FrontendAttrs})
		if err != nil {
			return nil, err
		}
		st, err := res.Ref.ToState()
		if err != nil {
			return nil, err
		}
		return gw.Solve(ctx, request(t, ctx, st.File(llb.Mkfile("/more", 0o600, []byte("c")))))
	}, nil)
	require.NoError(t, err)
	require.Equal(t, "b", read(t, dir, "a"))
	require.Equal(t, "c", read(t, dir, "more"))
}
