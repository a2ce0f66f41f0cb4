package fake

import (
	"context"
	"strings"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	v1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/api/handrail/v1/handrailv1connect"
	"handrail.dev/handrail/internal/foundation/fault"
)

type inspections struct {
	handrailv1connect.UnimplementedInspectionsHandler
	a *API
}

// Look tells a story of each verb; in the hostile one the target speaks.
func (i inspections) Look(_ context.Context, r *v1.InspectRequest, out *connect.ServerStream[v1.InspectResponse]) error {
	name := "api"
	if i.a.kind == Hostile {
		name = Poison
	}
	send := func(m *v1.InspectResponse) { _ = out.Send(m) }
	send(&v1.InspectResponse{Record: &v1.InspectResponse_Began{Began: &v1.InspectBegan{Id: "n-4t7x2k9m", Host: r.Host, HostName: "db-1"}}})
	process := func(pid int64) *v1.InspectTarget {
		return &v1.InspectTarget{Pid: pid, Name: name, User: "app", Unit: "api.service", Command: "/srv/api --token ‹masked: password› " + name, Runtime: "go", State: "sleeping", Threads: 12, Started: i.a.at(-3600e9)}
	}
	if r.Target == "two" {
		send(&v1.InspectResponse{Record: &v1.InspectResponse_Candidate{Candidate: process(4242)}})
		send(&v1.InspectResponse{Record: &v1.InspectResponse_Candidate{Candidate: process(4243)}})
		return wrong(fault.New(fault.Conflict, "cannot tell which process %q is: 2 are called so", r.Target).WithHint("name its number"))
	}
	send(&v1.InspectResponse{Record: &v1.InspectResponse_Target{Target: process(4242)}})
	switch r.What {
	case "stacks":
		threads := make([]*v1.InspectThread, 37)
		for n := range threads {
			threads[n] = &v1.InspectThread{Id: int64(100 + n)}
		}
		send(&v1.InspectResponse{Record: &v1.InspectResponse_Stack{Stack: &v1.InspectStack{Kind: "goroutine", State: "sync.Mutex.Lock", Threads: threads, Frames: []*v1.InspectFrame{
			{Function: "runtime.gopark", File: "/usr/lib/go/src/runtime/proc.go", Line: 462}, {Function: "main.(*Pool).take", File: "/srv/api/pool.go", Line: 88}, {Function: name, File: name, Line: 1, Note: name},
			{Function: "net/http.(*conn).serve", File: "/usr/lib/go/src/net/http/server.go", Line: 2092, Note: "began it"}}}}})
		send(&v1.InspectResponse{Record: &v1.InspectResponse_Stack{Stack: &v1.InspectStack{Kind: "goroutine", State: "running", Threads: []*v1.InspectThread{{Id: 7, Name: name}}, Frames: []*v1.InspectFrame{{Function: "main.main", File: "/srv/api/main.go", Line: 12}}}}})
	case "env":
		send(&v1.InspectResponse{Record: &v1.InspectResponse_Variable{Variable: &v1.InspectVariable{Name: "DB_PASSWORD", Value: "‹masked: password›", Masked: "password"}}})
		send(&v1.InspectResponse{Record: &v1.InspectResponse_Variable{Variable: &v1.InspectVariable{Name: strings.ToUpper(name), Value: "/usr/bin " + name}}})
	case "journal":
		send(&v1.InspectResponse{Record: &v1.InspectResponse_Line{Line: &v1.InspectLine{At: i.a.at(-60e9), Unit: "api.service", Priority: "err", Text: "cannot reach postgres://api:‹masked: login›@db " + name}}})
	case "files":
		return out.Send(&v1.InspectResponse{Record: &v1.InspectResponse_End{End: &v1.InspectEnd{Method: "nothing"}}})
	}
	send(&v1.InspectResponse{Record: &v1.InspectResponse_Note{Note: "What is not shown, it says. " + name}})
	return out.Send(&v1.InspectResponse{Record: &v1.InspectResponse_End{End: &v1.InspectEnd{Method: "goroutines read from memory", Pause: durationpb.New(1_800_000), Masked: 3, Records: 2}}})
}
