;; An agent on the bare ABI. The word in capitals is what `on-request` does, with the handle of its run as local 0; it returns where in
;; memory its result is.
;; There is one page, with the bytes ff ff ff ff at 512, and zeroes up to there.
(component
  (import "bureau:agent/types@0.1.0" (instance $types
    (type $header' (record (field "name" string) (field "value" string)))
    (export "header" (type $header (eq $header')))
    (type $request' (record (field "method" string) (field "path" string) (field "body" (list u8))))
    (export "request" (type $request (eq $request')))
    (type $chunks (stream u8))
    (type $body' (variant (case "bytes" (list u8)) (case "chunks" $chunks)))
    (export "body" (type $body (eq $body')))
    (type $response' (record (field "status" u16) (field "headers" (list $header)) (field "body" $body)))
    (export "response" (type $response (eq $response')))
    (type $reply' (variant (case "response" $response) (case "events")))
    (export "reply" (type $reply (eq $reply')))
    (type $agent-error' (variant (case "bad-request" string) (case "cancelled") (case "other" string)))
    (export "agent-error" (type $agent-error (eq $agent-error')))
    (type $emit-error' (variant (case "closed") (case "backlogged") (case "too-large" u64) (case "invalid" string)))
    (export "emit-error" (type $emit-error (eq $emit-error')))))
  (alias export $types "request" (type $request))
  (alias export $types "reply" (type $reply))
  (alias export $types "agent-error" (type $agent-error))
  (alias export $types "emit-error" (type $emit-error'))
  (import "bureau:agent/runs@0.1.0" (instance $runs
    (export "emit-error" (type $emit-error (eq $emit-error')))
    (export "run" (type $run (sub resource)))
    (export "[method]run.open" (func (param "self" (borrow $run))))
    (export "[method]run.flush" (func async (param "self" (borrow $run)) (result (result u64 (error $emit-error)))))))
  (alias export $runs "run" (type $run))

  (core module $memory
    (memory (export "memory") 1)
    (data (i32.const 512) "\ff\ff\ff\ff")
    (global $free (mut i32) (i32.const 4096))
    ;; Gives each its own place, and none back.
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      global.get $free
      (global.set $free
        (i32.and (i32.add (global.get $free) (i32.add (local.get 3) (i32.const 15))) (i32.const -16)))))
  (core instance $memory (instantiate $memory))
  (alias core export $memory "memory" (core memory $bytes))
  (alias core export $memory "realloc" (core func $realloc))
  (core func $open (canon lower (func $runs "[method]run.open")))
  (core func $flush (canon lower (func $runs "[method]run.flush") (memory $bytes) (realloc $realloc)))

  (core module $code
    (import "host" "memory" (memory 1))
    (import "host" "open" (func $open (param i32)))
    (import "host" "flush" (func $flush (param i32 i32)))
    (func (export "on-request") (param i32 i32 i32 i32 i32 i32 i32) (result i32)
      BODY))
  (core instance $code (instantiate $code (with "host" (instance
    (export "memory" (memory $bytes))
    (export "open" (func $open))
    (export "flush" (func $flush))))))
  (type $on-request'
    (func async (param "run" (own $run)) (param "request" $request) (result (result $reply (error $agent-error)))))
  (func $on-request (type $on-request')
    (canon lift (core func $code "on-request") (memory $bytes) (realloc $realloc)))
  (instance $handler (export "request" (type $request)) (export "on-request" (func $on-request)))
  (export "bureau:agent/handler@0.1.0" (instance $handler)))
