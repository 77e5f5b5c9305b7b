// The search of a site runs in a worker, and browsers start none for a page that is opened from
// disk. There, its script runs in a hidden frame instead, which stands in for the worker.
"use strict";

if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const element = document.body.appendChild(document.createElement("iframe"));
      element.hidden = true;
      const frame = element.contentWindow;
      const load = (source) =>
        new Promise((done, failed) => {
          const script = frame.document.createElement("script");
          Object.assign(script, { src: source, onload: done, onerror: failed });
          frame.document.body.append(script);
        });
      frame.importScripts = async (...sources) => {
        for (const source of sources) await load(source);
      };
      frame.postMessage = (data) => {
        const message = new MessageEvent("message", { data });
        this.onmessage?.(message);
        this.dispatchEvent(message);
      };
      this.frame = frame;
      this.ready = load(url);
      this.ready.catch((error) => this.dispatchEvent(new ErrorEvent("error", { error })));
    }

    async postMessage(data) {
      await this.ready;
      this.frame.dispatchEvent(new this.frame.MessageEvent("message", { data }));
    }
  };
}
