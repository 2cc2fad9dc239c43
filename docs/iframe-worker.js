// A page that was opened from a file may start no worker. There the search's worker runs in a hidden frame of the page.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inside = frame.contentWindow;
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = (...addresses) =>
        addresses.reduce((before, each) => before.then(() => this.load(frame, each)), Promise.resolve());
      this.load(frame, String(address)).then(() => {
        this.inside = inside;
        this.waiting.forEach(data => this.postMessage(data));
      });
    }

    load(frame, address) {
      return new Promise((resolve, reject) => {
        const script = frame.contentDocument.createElement("script");
        script.onload = resolve;
        script.onerror = () => reject(new Error(`search: ${address} does not load`));
        script.src = address;
        frame.contentDocument.body.append(script);
      });
    }

    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data }));
      else this.waiting.push(data);
    }

    terminate() {}
  };
}
