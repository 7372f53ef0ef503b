// Command dfdiff says what the official frontend does with Dockerfiles and options.
//
// It reads one JSON case a line and answers each with a line: all that the frontend asked of the daemon, and its result or
// error. Cases with a `fn` member ask a single function instead. Build it inside a BuildKit source tree (see differential.rs).
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/protobuf/proto"
)

// A question: a build by the frontend, or one function of it.
type question struct {
	Opts   map[string]string            `json:"opts"`
	Files  map[string]map[string][]byte `json:"files"`
	Inputs map[string]string            `json:"inputs"`
	Fn     string                       `json:"fn"`
	Text   []byte                       `json:"text"`
	Mode   int                          `json:"mode"`
	List   []string                     `json:"list"`
	Env    []string                     `json:"env"`
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
	mu     sync.Mutex
	q      *question
	images *imageList
	solves []any
	metas  []any
	warns  []any
}

type ref struct {
	s   *stub
	def *pb.Definition
}

func (r *ref) ToState() (llb.State, error) {
	op, err := llb.NewDefinitionOp(r.def)
	if err != nil {
		return llb.State{}, err
	}
	return llb.NewState(op), nil
}
func (r *ref) Evaluate(ctx context.Context) error { return nil }
func (r *ref) ReadFile(ctx context.Context, req client.ReadRequest) ([]byte, error) {
	missing := fmt.Errorf("open %s: no such file or directory", req.Filename)
	var source string
	if r.def != nil {
		for _, dt := range r.def.Def {
			var op pb.Op
			if err := op.UnmarshalVT(dt); err != nil {
				return nil, err
			}
			if s := op.GetSource(); s != nil {
				if source != "" {
					return nil, missing
				}
				source = s.Identifier
			}
		}
	}
	data, ok := r.s.q.Files[source][strings.TrimPrefix(path.Clean("/"+req.Filename), "/")]
	if !ok {
		return nil, missing
	}
	if req.Range != nil {
		data = data[min(req.Range.Offset, len(data)):min(req.Range.Offset+req.Range.Length, len(data))]
	}
	return data, nil
}
func (r *ref) StatFile(ctx context.Context, req client.StatRequest) (*fstypes.Stat, error) {
	return nil, errors.New("no such file")
}
func (r *ref) ReadDir(ctx context.Context, req client.ReadDirRequest) ([]*fstypes.Stat, error) {
	return nil, nil
}

func definition(def *pb.Definition) any {
	if def == nil {
		return nil
	}
	// What is no text is not refused here, but cannot be written down.
	for _, meta := range def.Metadata {
		for key, value := range meta.Description {
			meta.Description[key] = strings.ToValidUTF8(value, "\uFFFD")
		}
		if group := meta.ProgressGroup; group != nil {
			group.Name = strings.ToValidUTF8(group.Name, "\uFFFD")
		}
	}
	dt, err := proto.MarshalOptions{Deterministic: true}.Marshal(def)
	if err != nil {
		panic(err)
	}
	return dt
}

func (s *stub) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	inputs := map[string]any{}
	for name, def := range req.FrontendInputs {
		inputs[name] = definition(def)
	}
	imports := []any{}
	for _, entry := range req.CacheImports {
		imports = append(imports, map[string]any{"type": entry.Type, "attrs": entry.Attrs})
	}
	s.mu.Lock()
	s.solves = append(s.solves, map[string]any{
		"evaluate": req.Evaluate, "definition": definition(req.Definition), "frontend": req.Frontend,
		"opts": req.FrontendOpt, "inputs": inputs, "imports": imports,
	})
	s.mu.Unlock()
	res := client.NewResult()
	if req.Frontend == "" {
		res.SetRef(&ref{s, req.Definition})
	}
	return res, nil
}

func (s *stub) config(name string, platform ocispecs.Platform) (digest.Digest, []byte, error) {
	var dgst digest.Digest
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
				return "", nil, errors.New(e.Error)
			}
			config = e.Config
		}
	}
	text := string(config)
	if platform.Variant == "" {
		text = strings.Replace(text, `"variant":"${variant}",`, "", 1)
	}
	text = strings.NewReplacer("${os}", platform.OS, "${arch}", platform.Architecture, "${variant}", platform.Variant).Replace(text)
	return dgst, []byte(text), nil
}

func (s *stub) ask(op *pb.SourceOp, opt sourceresolver.Opt) {
	note := map[string]any{"id": op.Identifier, "attrs": op.Attrs, "log": opt.LogName}
	if o := opt.ImageOpt; o != nil {
		note["mode"] = o.ResolveMode
		note["noconfig"] = o.NoConfig
		if o.Platform != nil {
			note["platform"] = platforms.FormatAll(*o.Platform)
		}
	}
	if o := opt.OCILayoutOpt; o != nil {
		note["store"] = o.Store.StoreID
		note["session"] = o.Store.SessionID
		if o.Platform != nil {
			note["platform"] = platforms.FormatAll(*o.Platform)
		}
	}
	if o := opt.GitOpt; o != nil {
		note["object"] = o.ReturnObject
	}
	s.mu.Lock()
	s.metas = append(s.metas, note)
	s.mu.Unlock()
}

func (s *stub) ResolveImageConfig(ctx context.Context, name string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	platform := platforms.DefaultSpec()
	scheme := "docker-image://"
	if o := opt.ImageOpt; o != nil && o.Platform != nil {
		platform = *o.Platform
	}
	if o := opt.OCILayoutOpt; o != nil {
		scheme = "oci-layout://"
		if o.Platform != nil {
			platform = *o.Platform
		}
	}
	s.ask(&pb.SourceOp{Identifier: scheme + name}, opt)
	dgst, config, err := s.config(name, platform)
	return name, dgst, config, err
}

func (s *stub) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	scheme, rest, _ := strings.Cut(op.Identifier, "://")
	answer := &sourceresolver.MetaResponse{Op: op}
	switch scheme {
	case "docker-image", "oci-layout":
		_, dgst, config, err := s.ResolveImageConfig(ctx, rest, opt)
		if err != nil {
			return nil, err
		}
		answer.Image = &sourceresolver.ResolveImageResponse{Digest: dgst, Config: config}
	case "git":
		s.ask(op, opt)
		answer.Git = &sourceresolver.ResolveGitResponse{CommitObject: []byte("tree 0\nauthor a <a@b> 1600000000 +0000\ncommitter a <a@b> 1600000001 +0000\n\nx")}
	case "http", "https":
		s.ask(op, opt)
		modified := time.Unix(1600000002, 0)
		answer.HTTP = &sourceresolver.ResolveHTTPResponse{LastModified: &modified}
	}
	return answer, nil
}

func (s *stub) BuildOpts() client.BuildOpts {
	return client.BuildOpts{
		Opts:      s.q.Opts,
		SessionID: "corpus",
		Workers:   []client.WorkerInfo{{ID: "0", Platforms: []ocispecs.Platform{{OS: "linux", Architecture: "amd64"}}}},
		LLBCaps:   pb.Caps.CapSet(pb.Caps.All()),
		Caps:      gwpb.Caps.CapSet(gwpb.Caps.All()),
	}
}

func (s *stub) Inputs(ctx context.Context) (map[string]llb.State, error) {
	all := map[string]llb.State{}
	for name, image := range s.q.Inputs {
		// A state as it comes over the wire.
		def, err := llb.NewState(llb.NewSource("docker-image://"+image, nil, llb.Constraints{}).Output()).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		op, err := llb.NewDefinitionOp(def.ToPB())
		if err != nil {
			return nil, err
		}
		all[name] = llb.NewState(op)
	}
	return all, nil
}
func (s *stub) NewContainer(ctx context.Context, req client.NewContainerRequest) (client.Container, error) {
	return nil, errors.New("no containers")
}
func (s *stub) Warn(ctx context.Context, dgst digest.Digest, msg string, opts client.WarnOpts) error {
	detail := []string{}
	for _, dt := range opts.Detail {
		detail = append(detail, string(dt))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.warns = append(s.warns, map[string]any{
		"short": msg, "detail": detail, "url": opts.URL, "level": opts.Level, "lines": lines(opts.Range),
		"file": opts.SourceInfo.GetFilename(), "vertex": dgst.String(),
	})
	return nil
}

func lines(ranges []*pb.Range) [][4]int32 {
	out := [][4]int32{}
	for _, r := range ranges {
		out = append(out, [4]int32{r.Start.Line, r.Start.Character, r.End.Line, r.End.Character})
	}
	return out
}

func build(q *question, images *imageList) (out map[string]any) {
	s := &stub{q: q, images: images}
	if q.Opts == nil {
		q.Opts = map[string]string{}
	}
	out = map[string]any{}
	defer func() {
		if r := recover(); r != nil {
			out["error"] = fmt.Sprintf("panic: %v", r)
		}
	}()
	res, err := builder.Build(context.TODO(), s)
	out["solves"], out["metas"], out["warns"] = s.solves, s.metas, s.warns
	if err != nil {
		out["error"] = err.Error()
		sources := []any{}
		for _, source := range errdefs.Sources(err) {
			sources = append(sources, map[string]any{"file": source.Info.Filename, "lines": lines(source.Ranges)})
		}
		out["sources"] = sources
		var located *parser.LocationError
		if errors.As(err, &located) {
			out["locations"] = len(located.Locations)
		}
		return out
	}
	if res == nil {
		return out
	}
	refs := map[string]any{}
	if res.Ref != nil {
		refs[""] = definition(res.Ref.(*ref).def)
	}
	for name, r := range res.Refs {
		refs[name] = definition(r.(*ref).def)
	}
	metadata := map[string]string{}
	for key, value := range res.Metadata {
		metadata[key] = string(value)
	}
	attestations := map[string]any{}
	for key, list := range res.Attestations {
		all := []any{}
		for _, a := range list {
			meta := map[string]string{}
			for key, value := range a.Metadata {
				meta[key] = string(value)
			}
			all = append(all, map[string]any{
				"kind": a.Kind.String(), "metadata": meta, "path": a.Path, "predicate": a.InToto.PredicateType,
				"subjects": len(a.InToto.Subjects), "definition": definition(a.Ref.(*ref).def),
			})
		}
		attestations[key] = all
	}
	out["refs"], out["metadata"], out["attestations"] = refs, metadata, attestations
	return out
}

func keys(set map[string]struct{}) []string {
	list := []string{}
	for key := range set {
		list = append(list, key)
	}
	sort.Strings(list)
	return list
}

func function(q *question) (out map[string]any) {
	out = map[string]any{}
	defer func() {
		if r := recover(); r != nil {
			out["error"] = fmt.Sprintf("panic: %v", r)
		}
	}()
	fail := func(err error) map[string]any {
		return map[string]any{"error": err.Error()}
	}
	text := string(q.Text)
	switch q.Fn {
	case "lex":
		escape := '\\'
		if q.Mode&1 > 0 {
			escape = '`'
		}
		lex := shell.NewLex(escape)
		lex.RawQuotes = q.Mode&2 > 0
		lex.RawEscapes = q.Mode&4 > 0
		lex.SkipProcessQuotes = q.Mode&8 > 0
		lex.SkipUnsetEnv = q.Mode&16 > 0
		env := shell.EnvsFromSlice(q.Env)
		res, err := lex.ProcessWordWithMatches(text, env)
		if err != nil {
			out["word_error"] = err.Error()
		} else {
			out["word"] = []byte(res.Result)
			out["matched"], out["unmatched"] = keys(res.Matched), keys(res.Unmatched)
		}
		words, err := lex.ProcessWords(text, env)
		if err != nil {
			out["words_error"] = err.Error()
		} else {
			list := [][]byte{}
			for _, word := range words {
				list = append(list, []byte(word))
			}
			out["words"] = list
		}
	case "ignore":
		list, err := ignorefile.ReadAll(bytes.NewReader(q.Text))
		if err != nil {
			return fail(err)
		}
		out["patterns"] = append([]string{}, list...)
		pm, err := patternmatcher.New(list)
		if err != nil {
			out["error"] = err.Error()
			return out
		}
		matches := []any{}
		for _, name := range q.List {
			m, err := pm.MatchesOrParentMatches(name)
			if err != nil {
				matches = append(matches, "error")
			} else {
				matches = append(matches, m)
			}
		}
		out["matches"] = matches
	case "git":
		r, is, err := dfgitutil.ParseGitRef(text)
		if err != nil && is {
			out["error"] = err.Error()
			return out
		}
		out["git"] = is
		if is {
			r.ShortName, r.UnencryptedTCP = "", false
			dt, err := json.Marshal(r)
			if err != nil {
				return fail(err)
			}
			out["ref"] = string(dt)
		}
	case "reference":
		r, err := reference.ParseNormalizedNamed(text)
		if err != nil {
			return fail(err)
		}
		out["full"] = reference.TagNameOnly(r).String()
		out["familiar"] = reference.FamiliarString(r)
	case "platform":
		p, err := platforms.Parse(text)
		if err != nil {
			return fail(err)
		}
		out["full"] = platforms.FormatAll(p)
		out["normal"] = platforms.FormatAll(platforms.Normalize(p))
		out["plain"] = platforms.Format(p)
	}
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
	in := bufio.NewReaderSize(os.Stdin, 1<<20)
	out := bufio.NewWriter(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			break
		}
		q := &question{}
		if err := json.Unmarshal(line, q); err != nil {
			panic(err)
		}
		var answer map[string]any
		if q.Fn != "" {
			answer = function(q)
		} else {
			answer = build(q, images)
		}
		line, err = json.Marshal(answer)
		if err != nil {
			panic(err)
		}
		out.Write(line)
		out.WriteByte('\n')
		if in.Buffered() == 0 {
			out.Flush()
		}
	}
	out.Flush()
}
