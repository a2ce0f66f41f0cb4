package rpc

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	handrailv1 "handrail.dev/handrail/api/handrail/v1"
	"handrail.dev/handrail/internal/feature/inspect"
	"handrail.dev/handrail/internal/foundation/wire"
)

type inspections struct{ d *Deps }

func (s inspections) Look(ctx context.Context, r *handrailv1.InspectRequest, out *connect.ServerStream[handrailv1.InspectResponse]) error {
	q := inspect.Request{Host: r.Host, What: r.What, Target: r.Target, Part: r.Part, Since: rfc3339(r.Since), Until: rfc3339(r.Until),
		Priority: r.Priority, Grep: r.Grep, Lines: int64(min(r.Lines, wire.MaxInspectLines)), Pause: r.Pause.AsDuration()}
	return s.d.Inspect.Look(ctx, caller(ctx), q,
		func(a inspect.Asked) error {
			return out.Send(beganMessage(a))
		},
		func(record wire.InspectRecord) error {
			if m := lookMessage(record); m != nil {
				return out.Send(m)
			}
			return nil
		})
}

func beganMessage(a inspect.Asked) *handrailv1.InspectResponse {
	return &handrailv1.InspectResponse{Record: &handrailv1.InspectResponse_Began{
		Began: &handrailv1.InspectBegan{Id: a.ID, Host: a.Host, HostName: a.HostName, Floor: a.Floor, Visited: a.Visited}}}
}

func rfc3339(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

func lookMessage(r wire.InspectRecord) *handrailv1.InspectResponse {
	out := &handrailv1.InspectResponse{}
	switch {
	case r.Target != nil:
		out.Record = &handrailv1.InspectResponse_Target{Target: lookTarget(r.Target)}
	case r.Candidate != nil:
		out.Record = &handrailv1.InspectResponse_Candidate{Candidate: lookTarget(r.Candidate)}
	case r.Stack != nil:
		out.Record = &handrailv1.InspectResponse_Stack{Stack: lookStack(r.Stack)}
	case r.Process != nil:
		out.Record = &handrailv1.InspectResponse_Process{Process: lookProcess(r.Process)}
	case r.Group != nil:
		g := r.Group
		out.Record = &handrailv1.InspectResponse_Group{Group: &handrailv1.InspectGroup{Path: g.Path, CpuQuota: g.CPUQuota, Throttled: g.Throttled,
			ThrottledTime: durationpb.New(time.Duration(g.ThrottledUS) * time.Microsecond), Memory: g.Memory, MemoryMax: g.MemoryMax,
			MemoryHigh: g.MemoryHigh, OomKills: g.OOMKills, Pids: g.PIDs, PidsMax: g.PIDsMax}}
	case r.Socket != nil:
		s := r.Socket
		out.Record = &handrailv1.InspectResponse_Socket{Socket: &handrailv1.InspectSocket{Protocol: s.Protocol, State: s.State, Local: s.Local, Remote: s.Remote,
			Pid: s.PID, Name: s.Name, User: s.User, Unit: s.Unit, Queued: s.Queued, Unsent: s.Unsent, Others: s.Others, Count: s.Count, Foreign: s.Foreign}}
	case r.File != nil:
		f := r.File
		out.Record = &handrailv1.InspectResponse_File{File: &handrailv1.InspectFile{Fd: f.FD, Path: f.Path, Kind: f.Kind, Mode: f.Mode, Size: f.Size,
			Offset: f.Offset, Deleted: f.Deleted, User: f.User, Changed: stamp(f.Changed), Locked: f.Locked, LinkedTo: f.LinkedTo}}
	case r.Variable != nil:
		out.Record = &handrailv1.InspectResponse_Variable{Variable: &handrailv1.InspectVariable{Name: r.Variable.Name, Value: r.Variable.Value, Masked: r.Variable.Masked}}
	case r.Line != nil:
		l := r.Line
		out.Record = &handrailv1.InspectResponse_Line{Line: &handrailv1.InspectLine{At: stamp(l.At), Unit: l.Unit, Pid: l.PID, Priority: l.Priority, Text: l.Text}}
	case r.Note != "":
		out.Record = &handrailv1.InspectResponse_Note{Note: r.Note}
	case r.End != nil:
		e := r.End
		out.Record = &handrailv1.InspectResponse_End{End: &handrailv1.InspectEnd{Method: e.Method, Pause: durationpb.New(time.Duration(e.PauseNS)),
			Bound: e.Bound, Masked: e.Masked, Records: e.Records, Bytes: e.Bytes, Cut: e.Cut}}
	default:
		return nil
	}
	return out
}

func lookTarget(t *wire.InspectTarget) *handrailv1.InspectTarget {
	return &handrailv1.InspectTarget{Pid: t.PID, Name: t.Name, User: t.User, Unit: t.Unit, Command: t.Command, Runtime: t.Runtime, State: t.State,
		Threads: t.Threads, Started: stamp(t.Started), Inside: t.Inside, Count: t.Count}
}

func lookStack(s *wire.InspectStack) *handrailv1.InspectStack {
	return &handrailv1.InspectStack{Kind: s.Kind, More: s.More, State: s.State, Cut: s.Cut, Why: s.Why,
		Threads: each(s.Threads, func(t wire.InspectThread) *handrailv1.InspectThread {
			return &handrailv1.InspectThread{Id: t.ID, Name: t.Name, State: t.State, Wait: t.Wait}
		}),
		Frames: each(s.Frames, func(f wire.InspectFrame) *handrailv1.InspectFrame {
			return &handrailv1.InspectFrame{Function: f.Function, File: f.File, Line: f.Line, Module: f.Module, Note: f.Note}
		})}
}

func lookProcess(p *wire.InspectProcess) *handrailv1.InspectProcess {
	return &handrailv1.InspectProcess{Pid: p.PID, Thread: p.Thread, Name: p.Name, User: p.User, Unit: p.Unit, Command: p.Command, State: p.State,
		Cpu: p.CPU, Resident: p.Resident, Pss: p.PSS, Swap: p.Swap, Threads: p.Threads, Files: p.Files, FilesMax: p.FilesMax,
		Read: p.Read, Written: p.Written, Started: stamp(p.Started)}
}
