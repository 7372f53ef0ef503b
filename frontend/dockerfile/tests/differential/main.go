// Command dfdiff says what the official frontend makes of a list of Dockerfiles.
//
// It reads files named on standard input, one path, a tab and JSON options a line, and writes one JSON line for each:
// whether it converts, where it fails, digests of its ops, its image config, its lint findings.
// Build it inside a BuildKit source tree (see differential.rs).
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	fstypes "github.com/tonistiigi/fsutil/types"
)

type answer struct {
	Name   string          `json:"name"`
	OK     bool            `json:"ok"`
	Error  string          `json:"error,omitempty"`
	Lines  [][2]int        `json:"lines"`
	Ops    []string        `json:"ops"`
	Config json.RawMessage `json:"config,omitempty"`
	Lint   []finding       `json:"lint"`
}

type finding struct {
	Rule    string `json:"rule"`
	Line    int    `json:"line"`
	Message string `json:"message"`
}

type imageList struct {
	Entries []struct {
		Name   string          `json:"name"`
		Error  string          `json:"error"`
		Config json.RawMessage `json:"config"`
	} `json:"entries"`
	Default        json.RawMessage `json:"default"`
	DefaultWindows json.RawMessage `json:"default_windows"`
}

type stub struct {
	opts   map[string]string
	data   []byte
	images *imageList
}

type ref struct{ s *stub }

func (r *ref) ToState() (llb.State, error)         { return llb.Scratch(), nil }
func (r *ref) Evaluate(ctx context.Context) error { return nil }
func (r *ref) ReadFile(ctx context.Context, req client.ReadRequest) ([]byte, error) {
	if req.Filename == "Dockerfile" {
		return r.s.data, nil
	}
	return nil, errors.New("no such file")
}
func (r *ref) StatFile(ctx context.Context, req client.StatRequest) (*fstypes.Stat, error) {
	return nil, errors.New("no such file")
}
func (r *ref) ReadDir(ctx context.Context, req client.ReadDirRequest) ([]*fstypes.Stat, error) {
	return nil, nil
}

func (s *stub) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	res := client.NewResult()
	res.SetRef(&ref{s})
	return res, nil
}

func (s *stub) ResolveImageConfig(ctx context.Context, name string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	platform := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		platform = *opt.ImageOpt.Platform
	}
	dgst := digest.Digest("")
	bare, after, ok := strings.Cut(name, "@")
	if ok {
		dgst = digest.Digest(after)
	} else {
		dgst = digest.Digest(fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(name))))
	}
	if i := strings.LastIndex(bare, ":"); i >= 0 && !strings.Contains(bare[i:], "/") {
		bare = bare[:i]
	}
	config := s.images.Default
	if platform.OS == "windows" {
		config = s.images.DefaultWindows
	}
	for _, e := range s.images.Entries {
		if e.Name == bare {
			if e.Error != "" {
				return "", "", nil, errors.New(e.Error)
			}
			config = e.Config
		}
	}
	text := string(config)
	if platform.Variant == "" {
		text = strings.Replace(text, `"variant":"${variant}",`, "", 1)
	}
	text = strings.NewReplacer("${os}", platform.OS, "${arch}", platform.Architecture, "${variant}", platform.Variant).Replace(text)
	return name, dgst, []byte(text), nil
}

func (s *stub) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	return &sourceresolver.MetaResponse{Op: op}, nil
}

func (s *stub) BuildOpts() client.BuildOpts {
	return client.BuildOpts{
		Opts:      s.opts,
		SessionID: "corpus",
		Workers:   []client.WorkerInfo{{ID: "0", Platforms: []ocispecs.Platform{{OS: "linux", Architecture: "amd64"}}}},
		LLBCaps:   pb.Caps.CapSet(pb.Caps.All()),
		Caps:      gwpb.Caps.CapSet(gwpb.Caps.All()),
	}
}

func (s *stub) Inputs(ctx context.Context) (map[string]llb.State, error) { return nil, nil }
func (s *stub) NewContainer(ctx context.Context, req client.NewContainerRequest) (client.Container, error) {
	return nil, errors.New("no containers")
}
func (s *stub) Warn(ctx context.Context, dgst digest.Digest, msg string, opts client.WarnOpts) error {
	return nil
}

func convert(name string, data []byte, opts map[string]string, images *imageList) (out answer) {
	out.Name = name
	out.Lines = [][2]int{}
	out.Lint = []finding{}
	out.Ops = []string{}
	defer func() {
		if r := recover(); r != nil {
			out.OK = false
			out.Error = fmt.Sprintf("panic: %v", r)
		}
	}()
	ctx := context.TODO()
	s := &stub{opts: opts, data: data, images: images}
	ui, err := dockerui.NewClient(s)
	if err != nil {
		out.Error = err.Error()
		return out
	}
	src, err := ui.ReadEntrypoint(ctx, "Dockerfile")
	if err != nil {
		out.Error = err.Error()
		return out
	}
	var target *ocispecs.Platform
	if p, err := platforms.Parse(opts["platform"]); err == nil {
		target = &p
	}
	opt := dockerfile2llb.ConvertOpt{
		Config:         ui.Config,
		Client:         ui,
		SourceMap:      src.SourceMap,
		MetaResolver:   s,
		TargetPlatform: target,
		Warn: func(rule, description, url, message string, location []parser.Range) {
			line := 0
			if len(location) > 0 {
				line = location[0].Start.Line
			}
			out.Lint = append(out.Lint, finding{rule, line, message})
		},
	}
	res, err := dockerfile2llb.Dockerfile2LLB(ctx, data, opt)
	var def *llb.Definition
	if err == nil {
		def, err = res.State.Marshal(ctx)
	}
	sort.SliceStable(out.Lint, func(i, j int) bool {
		a, b := out.Lint[i], out.Lint[j]
		if a.Line != b.Line {
			return a.Line < b.Line
		}
		if a.Rule != b.Rule {
			return a.Rule < b.Rule
		}
		return a.Message < b.Message
	})
	if err != nil {
		out.Error = err.Error()
		var located *parser.LocationError
		if errors.As(err, &located) {
			for _, ranges := range located.Locations {
				if len(ranges) > 0 {
					out.Lines = append(out.Lines, [2]int{ranges[0].Start.Line, ranges[len(ranges)-1].End.Line})
				}
			}
		}
		return out
	}
	out.OK = true
	for _, dt := range def.Def {
		out.Ops = append(out.Ops, digest.FromBytes(dt).String())
	}
	out.Config, _ = json.Marshal(res.Image)
	return out
}

func main() {
	images := &imageList{}
	dt, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	if err := json.Unmarshal(dt, images); err != nil {
		panic(err)
	}
	in := bufio.NewScanner(os.Stdin)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for in.Scan() {
		path, options, _ := strings.Cut(in.Text(), "\t")
		data, err := os.ReadFile(path)
		if err != nil {
			panic(err)
		}
		opts := map[string]string{}
		if err := json.Unmarshal([]byte(options), &opts); err != nil {
			panic(err)
		}
		line, _ := json.Marshal(convert(path, data, opts, images))
		out.Write(line)
		out.WriteByte('\n')
	}
}
