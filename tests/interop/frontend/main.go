// A frontend of our own, to be run in a container: a language of one-line files.
//
//	# syntax=<image>
//	file <path> <text>     a file
//	opt <path> <option>    a file with an option's value
//	input <path> <name>    a copy of everything in an input
//	exec <path> <command>  a file with what a command of the input "tools" printed
//	fail <text>            an error at this line
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/pkg/errors"
)

func main() {
	if err := grpcclient.RunFromEnvironment(context.Background(), build); err != nil {
		fmt.Fprintln(os.Stderr, "frontend:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, c client.Client) (*client.Result, error) {
	opts := c.BuildOpts().Opts
	if opts["crash"] != "" {
		fmt.Fprintln(os.Stderr, "crashing as asked:", opts["crash"])
		os.Exit(3)
	}
	name := opts["filename"]
	if name == "" {
		name = "Dockerfile"
	}
	src := llb.Local("dockerfile", llb.FollowPaths([]string{name}), llb.SessionID(c.BuildOpts().SessionID))
	def, err := src.Marshal(ctx)
	if err != nil {
		return nil, err
	}
	res, err := c.Solve(ctx, client.SolveRequest{Definition: def.ToPB()})
	if err != nil {
		return nil, err
	}
	ref, err := res.SingleRef()
	if err != nil {
		return nil, err
	}
	text, err := ref.ReadFile(ctx, client.ReadRequest{Filename: name})
	if err != nil {
		return nil, err
	}
	st := llb.Scratch()
	for i, line := range strings.Split(string(text), "\n") {
		words := strings.SplitN(line, " ", 3)
		if len(words) < 2 || strings.HasPrefix(line, "#") {
			continue
		}
		rest := ""
		if len(words) == 3 {
			rest = words[2]
		}
		switch words[0] {
		case "file":
			st = st.File(llb.Mkfile(words[1], 0o644, []byte(rest)))
		case "opt":
			st = st.File(llb.Mkfile(words[1], 0o644, []byte(opts[rest])))
		case "input":
			input, err := one(ctx, c, rest)
			if err != nil {
				return nil, err
			}
			st = st.File(llb.Copy(input, "/", words[1], &llb.CopyInfo{CopyDirContentsOnly: true, CreateDestPath: true}))
		case "exec":
			out, err := run(ctx, c, rest)
			if err != nil {
				return nil, err
			}
			st = st.File(llb.Mkfile(words[1], 0o644, out))
		case "fail":
			at := &pb.Range{Start: &pb.Position{Line: int32(i + 1)}, End: &pb.Position{Line: int32(i + 1)}}
			return nil, errdefs.WithSource(errors.New(strings.TrimPrefix(line, "fail ")), &errdefs.Source{
				Info:   &pb.SourceInfo{Filename: name, Data: text, Language: "Lines"},
				Ranges: []*pb.Range{at},
			})
		default:
			return nil, errors.Errorf("unknown word %q", words[0])
		}
	}
	def, err = st.Marshal(ctx, llb.WithCustomName("made by our frontend"))
	if err != nil {
		return nil, err
	}
	final, err := c.Solve(ctx, client.SolveRequest{Definition: def.ToPB()})
	if err != nil {
		return nil, err
	}
	final.AddMeta("frontend.ours", []byte(c.BuildOpts().Product))
	return final, nil
}

func one(ctx context.Context, c client.Client, name string) (llb.State, error) {
	inputs, err := c.Inputs(ctx)
	if err != nil {
		return llb.State{}, err
	}
	input, ok := inputs[name]
	if !ok {
		return llb.State{}, errors.Errorf("there is no input %q", name)
	}
	return input, nil
}

// run starts a process in a container of the frontend's own.
func run(ctx context.Context, c client.Client, command string) ([]byte, error) {
	tools, err := one(ctx, c, "tools")
	if err != nil {
		return nil, err
	}
	def, err := tools.Marshal(ctx)
	if err != nil {
		return nil, err
	}
	res, err := c.Solve(ctx, client.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if err != nil {
		return nil, err
	}
	ctr, err := c.NewContainer(ctx, client.NewContainerRequest{
		Mounts: []client.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: res.Ref}},
	})
	if err != nil {
		return nil, err
	}
	defer ctr.Release(ctx)
	var out bytes.Buffer
	proc, err := ctr.Start(ctx, client.StartRequest{
		Args: []string{"/bin/sh", "-c", command}, Env: []string{"PATH=/bin"}, Cwd: "/",
		Stdout: nopCloser{&out}, Stderr: nopCloser{os.Stderr},
	})
	if err != nil {
		return nil, err
	}
	if err := proc.Wait(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
