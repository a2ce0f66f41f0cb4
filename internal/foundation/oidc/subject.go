package oidc

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	goidc "github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"

	"handrail.dev/handrail/internal/foundation/fault"
)

// fresh is how old an ID token may be: it was made for this exchange.
const fresh = 10 * time.Minute

// Subject is who the provider says that somebody is.
type Subject struct {
	Issuer, ID string // the two by which a person is known for good
	Kind       Kind   // what Value is
	Value      string // which person, for the first time
	Claim      string // that said so
	NewName    string // of somebody unknown, where the configuration adds them; else empty
	Groups     []string
	Question   string // what was asked, once: it opens one login
}

// subject reads who somebody is from the ID token of an exchange.
func (p *Provider) subject(ctx context.Context, k *known, token *oauth2.Token, nonce, question string) (Subject, error) {
	raw, _ := token.Extra("id_token").(string)
	if raw == "" {
		return Subject{}, p.untrusted(errors.New("it gave no ID token"))
	}
	verified, err := p.verify(ctx, k.verifier, raw)
	if err != nil {
		return Subject{}, err
	}
	if nonce != "" && subtle.ConstantTimeCompare([]byte(verified.Nonce), []byte(nonce)) != 1 {
		return Subject{}, p.untrusted(errors.New("its ID token answers another question"))
	}
	who, err := p.read(verified)
	who.Question = question
	return who, err
}

// untrusted is the error of a token that does not prove anything.
func (p *Provider) untrusted(err error) error {
	p.log.Warn("the provider's word was not believed", "error", err)
	return fault.New(fault.Unauthenticated, "cannot believe what %s says", p.conf.Name).
		WithHint("begin again; if it goes on, ask an admin: the server's log says why")
}

// verify checks what go-oidc does (signature, issuer, audience, expiry) and
// what it leaves to us.
func (p *Provider) verify(ctx context.Context, verifier *goidc.IDTokenVerifier, raw string) (*goidc.IDToken, error) {
	token, err := verifier.Verify(ctx, raw)
	if err != nil {
		return nil, p.untrusted(err)
	}
	var also struct {
		AuthorizedParty string `json:"azp"`
	}
	if err := token.Claims(&also); err != nil {
		return nil, p.untrusted(err)
	}
	switch now := p.now(); {
	case token.Subject == "" || len(token.Subject) > maxWord:
		return nil, p.untrusted(errors.New("its ID token names nobody"))
	case len(token.Audience) > 1 && also.AuthorizedParty != p.conf.ClientID, also.AuthorizedParty != "" && also.AuthorizedParty != p.conf.ClientID:
		return nil, p.untrusted(errors.New("its ID token is for another client"))
	case token.IssuedAt.Before(now.Add(-fresh)) || token.IssuedAt.After(now.Add(fresh)):
		return nil, p.untrusted(errors.New("its ID token is not of now; compare the clocks"))
	}
	return token, nil
}

// read takes the person and the groups from the claims.
func (p *Provider) read(token *goidc.IDToken) (Subject, error) {
	var claims map[string]json.RawMessage
	if err := token.Claims(&claims); err != nil {
		return Subject{}, p.untrusted(err)
	}
	who := Subject{Issuer: token.Issuer, ID: token.Subject, Kind: p.conf.PersonIs, Claim: p.conf.PersonClaim}
	var err error
	if who.Value, err = p.person(claims); err != nil {
		return Subject{}, err
	}
	if who.Groups, err = p.groups(claims); err != nil {
		return Subject{}, err
	}
	// Nobody is added of whom nothing was said that is believed: an address of no
	// domain of ours is a guest's at the provider, and no person here.
	if p.conf.Unknown == Add && who.Value != "" {
		if who.NewName = who.Value; p.conf.PersonIs != Name && p.conf.NameClaim != "email" {
			who.NewName = strings.ToLower(text(claims[p.conf.NameClaim]))
		}
	}
	return who, nil
}

// text is a claim that is a string; nothing else is.
func text(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil || len(s) > maxWord {
		return ""
	}
	return s
}

// person is what the claim says about which person this is. It is empty where
// the claim is not there: who is bound already needs it no more.
func (p *Provider) person(claims map[string]json.RawMessage) (string, error) {
	said := text(claims[p.conf.PersonClaim])
	if p.conf.PersonIs != Mail || said == "" {
		return said, nil
	}
	var verified bool
	if json.Unmarshal(claims["email_verified"], &verified) != nil || !verified {
		return "", nil // an address that anybody could have typed says nothing
	}
	local, domain, ok := strings.Cut(strings.ToLower(said), "@")
	if !ok || local == "" || !slices.Contains(p.conf.MailDomains, domain) {
		return "", nil
	}
	return local, nil
}

// groups are those of ours that the claim stands for, each once. A claim that
// is not there is no group; one that cannot be read refuses the login.
func (p *Provider) groups(claims map[string]json.RawMessage) ([]string, error) {
	raw, ok := claims[p.conf.GroupsClaim]
	if !ok || p.conf.GroupsClaim == "" || string(raw) == "null" {
		return nil, nil
	}
	var theirs []string
	if json.Unmarshal(raw, &theirs) != nil {
		var one string
		if json.Unmarshal(raw, &one) != nil {
			return nil, p.untrusted(errors.New("the claim " + p.conf.GroupsClaim + " is no list of names"))
		}
		theirs = []string{one}
	}
	var ours []string
	for _, t := range theirs {
		if g, ok := p.conf.Groups[t]; ok && !slices.Contains(ours, g) {
			ours = append(ours, g)
		}
	}
	slices.Sort(ours)
	return ours, nil
}
